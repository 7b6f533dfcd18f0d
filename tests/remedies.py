"""Every message of the package that names a remedy as it is typed, and what tries it.

``test_every_remedy.py`` finds the messages in the code itself, and fails for one that stands nowhere here.
"""

# ruff: noqa: E501  # a row of a table a line
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from prose_remedies import ADVICE

PACKAGE = Path(__file__).resolve().parents[1] / "histolight"

_TYPED = (
    r"(?:\b(?:[a-z_]+(?:\.[a-z_0-9]+)+|run|runs|like|name|seed|trainer|model|data|augment|loss|scheduler|sweep|part|tiles|"
    r"best|plan|by|hydra/launcher|format)=\S|\bhydra\.(?:run|sweep)\.dir\b|(?<![\w-])-m\b|histolight\[|"
    r"\bhistolight (?:train|compare|predict|evaluate|explore|download|doctor|bench)\b)"
)
_ADVICE = re.compile(
    r"\b(?:use|give|set|choose|try|install|add|name|leave|continue|see|correct|need|needs|is|does|with|run|say|says|"
    rf"export|starts|cut)\b[^:]*{_TYPED}|: add \{{\}}"
)
_NO_MESSAGES = ("USAGE", "HELP", "COMMANDS")


def messages() -> Iterator[tuple[str, str]]:
    """Yield file and text of each message that says what to do; what is filled in is ``{}``."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        left_out = {id(node) for part in ast.walk(tree) for node in _no_message(part)}
        for node in ast.walk(tree):
            text = _text(node)
            if " " in text and id(node) not in left_out and (_ADVICE.search(text) or ADVICE.search(text)):
                yield path.relative_to(PACKAGE).as_posix(), text


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""


def _no_message(node: ast.AST) -> Iterator[ast.AST]:
    """Yield docstrings, pages of help, what is printed, and the parts of a text that is put together."""
    if (
        isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    ):
        yield node.body[0].value
    elif isinstance(node, ast.JoinedStr):
        yield from (part for part in ast.walk(node) if part is not node)
    elif (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in _NO_MESSAGES) or (
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "field")
    ):
        yield from ast.walk(node)


# Part of a message; a request that prints it; the same request with what the message names. TILES are class folders,
# RUN is a completed run. ``test_every_remedy.py`` gives both requests.
TRIED = [
    ("to take that of a run use like=DIR", "bench run=RUN", "train like=RUN hydra.run.dir=new"),
    ("use trainer=cpu, gpu or auto with trainer.devices=1", "bench trainer.devices=2", "train trainer=cpu trainer.devices=1"),
    ("-m, use it with histolight train", "doctor -m seed=0,1", "train -m seed=0,1"),
    ("it takes run, runs, data, data.*", "explore model=resnet18", "explore data=synthetic"),
    ("give the network by its name, model.name={}", "train model=resnet50", "train model.name=resnet50"),
    ("run= and runs= {}", "predict data=folder data.root=TILES", "predict run=RUN data=folder data.root=TILES"),
    (
        "best={} is not known: give a number of runs, such as best=3",
        "predict runs=[RUN,RUN2,RUN3] best=x data=folder data.root=TILES",
        "predict runs=[RUN,RUN2,RUN3] best=3 data=folder data.root=TILES",
    ),
    (
        "is out of range: give a number of runs",
        "predict runs=[RUN,RUN2,RUN3] best=0 data=folder data.root=TILES",
        "predict runs=[RUN,RUN2,RUN3] best=3 data=folder data.root=TILES",
    ),
    ("data.root= is missing: give the folder", "predict run=RUN", "predict run=RUN ++data.root=TILES"),  # a plus sign changes nothing
    (
        "is for whole slides: add data=slides",
        "predict run=RUN data=folder data.root=TILES slides.stride=32",
        "predict run=RUN data=slides data.root=TILES slides.stride=32",
    ),
    ("data.fold={} is out of range", "train data.folds=3 data.fold=3", "train data.folds=3 data.fold=2"),
    ("it enlarges tiles only", "train model.input_size=64", "train model.input_size=96"),
    ("use fewer, or model.freeze=backbone", "train model.freeze_epochs=5", "train model.freeze=backbone"),
    (
        "the schedule would end before the training",
        "train scheduler.total_epochs=2 trainer.max_epochs=3",
        "train scheduler.total_epochs=3 trainer.max_epochs=3",
    ),
    ("give one, or sweep over them", "train seed=0,1", "train -m seed=0,1"),
    ("presets a whole run and can't be laid over", "train like=RUN experiment=best", "train like=RUN seed=3"),
    ("that of a run is hydra.run.dir=FOLDER", "train hydra.sweep.dir=new", "train hydra.run.dir=new"),
    ("to change something use like=DIR", "train run=RUN seed=3", "train like=RUN seed=3 hydra.run.dir=new"),
    ("{} is about a sweep: add -m", "train sweep.points_per_gpu=1", "train -m sweep.points_per_gpu=1 seed=0,1"),
    ("is completed: nothing to continue", "train run=RUN", "train like=RUN hydra.run.dir=new"),
    ("holds a run: continue it with", "train hydra.run.dir=RUN", "train hydra.run.dir=new"),
    ("choose another folder with hydra.run.dir=FOLDER", "train hydra.run.dir=TILES", "train hydra.run.dir=new"),
    ("choose another folder with hydra.run.dir=FOLDER", "evaluate run=RUN hydra.run.dir=TILES", "evaluate run=RUN hydra.run.dir=new"),
    ("has no folder, and data.root is given", "tiles data=synthetic data.root=TILES", "tiles data=folder data.root=TILES data.image_size=32"),
    ("needs data.root=FOLDER", "tiles data=folder data.image_size=32", "tiles data=folder data.image_size=32 data.root=TILES"),
    (
        "all have this size: use data.image_size",
        "tiles data=folder data.root=TILES",
        "tiles data=folder data.root=TILES data.image_size=32",
    ),
    (
        "name them with data.classes=[NEGATIVE,POSITIVE]",
        "tiles data=folder data.root=NAMED data.image_size=32",
        "tiles data=folder data.root=NAMED data.image_size=32 data.classes=[left,right]",
    ),
    (
        "does not name two folders in",
        "tiles data=folder data.root=NAMED data.image_size=32 data.classes=[a,b]",
        "tiles data=folder data.root=NAMED data.image_size=32 data.classes=[left,right]",
    ),
    ("use data.root={}", "tiles data=folder data.root=ABOVE data.image_size=32", "tiles data=folder data.root=TILES data.image_size=32"),
    (
        "data.domain=FILE.csv does",
        "tiles data=folder data.root=TILES data.image_size=32 data.domain=source",
        "tiles data=folder data.root=TILES data.image_size=32 data.domain=DOMAINS",
    ),
    (
        "choose another folder with data.cache=FOLDER",
        "tiles data=folder data.root=TILES data.image_size=32 data.cache=DOMAINS",
        "tiles data=folder data.root=TILES data.image_size=32 data.cache=new",
    ),
    (
        "to leave out one by one",
        "tiles data=folder data.root=TILES data.image_size=32 data.domain=DOMAINS data.fold=0",
        "tiles data=folder data.root=TILES data.image_size=32 data.domain=DOMAINS data.fold=0 data.folds=2",
    ),
    ("add loss.pos_weight=null", "train data.sampler=balanced", "train data.sampler=balanced loss.pos_weight=null"),
    ("use trainer.precision=auto", "train trainer=cpu trainer.precision=16-mixed", "train trainer=cpu trainer.precision=auto"),
    ("use model.weights={} or null", "train model.name=resnet18 model.weights=hub", "train model.name=resnet18 model.weights=imagenet"),
    ("is fitted on kept features: add", "train model.probe=knn", "train model.probe=knn model.freeze=backbone augment=none"),
    ("use model.features=pooled", "network model=timm model.name=timm/resnet18 model.features=cls", "network model=timm model.name=timm/resnet18 model.features=pooled"),
    ("add model.input_size={}", "network model=timm model.name=timm/vit_tiny_patch16_224", "network model=timm model.name=timm/vit_tiny_patch16_224 model.input_size=224"),
    ("is for networks of timm/ and hf/", "network model.name=resnet18 model.features=cls", "network model=timm model.name=timm/vit_tiny_patch16_224 model.input_size=224 model.features=cls"),
    ("add hydra/launcher=joblib", "train -m seed=0,1 sweep.points_per_gpu=2", "train -m seed=0,1 sweep.points_per_gpu=2 hydra/launcher=joblib"),
    ("with -m use trainer.devices=1", "train -m seed=0,1 trainer=cpu trainer.devices=2", "train -m seed=0,1 trainer=cpu trainer.devices=1 trainer.strategy=auto"),
    ("is about a single run: leave -m out", "train -m run=RUN", "train like=RUN hydra.run.dir=new"),
    ("that of a sweep is hydra.sweep.dir=FOLDER", "train -m seed=0,1 hydra.run.dir=new", "train -m seed=0,1 hydra.sweep.dir=new"),
    ("{}={} is not used: a search is sweep=optuna", "train -m hydra/sweeper=ax seed=0,1", "train -m sweep=optuna"),
    ("hydra/sweeper is Hydra's own: a search is", "train -m hydra.sweeper._target_=other.Sweeper seed=0,1", "train -m sweep=asha optimizer.weight_decay=0 data.batch_size=8"),
    ("set sweep.n_trials and the other sweep.* keys", "train -m hydra.sweeper.n_trials=5 seed=0,1", "train -m sweep=optuna sweep.n_trials=5"),
    ("a search needs an axis, such as", "train -m sweep.pruner=asha", "train -m sweep.pruner=asha optimizer.lr=1e-4,1e-3"),
    ("can't be searched, as its values are equally good", "train -m sweep=optuna seed=0,1", "train -m sweep=optuna seed=0 sweep.seeds=3"),
    ("give one value, or sweep.pruner=none", "train -m sweep.pruner=asha trainer.max_epochs=3,9", "train -m sweep.pruner=none trainer.max_epochs=3,9"),
    ("a search over an interval is sweep=optuna", "train -m optimizer.lr=interval(1e-4,1e-3)", "train -m sweep=optuna optimizer.lr=interval(1e-4,1e-3)"),
    ("give a sweep, a folder of runs, or a list", "runs nowhere", "runs RUN"),
]  # fmt: skip

_RARE = "data/test_rare_classes.py::test_a_split_that_a_message_names_works"
_EVALUATED = "commands/test_evaluate.py::test_other_tiles_calibrated"
_EXPLAINED = "commands/test_explain_and_export.py::test_explain_writes_page_pictures_and_tables"

_SLIDES = "data/test_slides_source.py::test_what_a_message_names_helps"

# Part of a message; the test that does what it names, after the request or in the situation that prints it.
TRIED_BY = {
    "such as tiles=8": _EXPLAINED,
    "train with data.test_fraction=0.2, or use part=val": _EXPLAINED,
    "slides.labels={} is not a file: give a CSV slide,label": _SLIDES,
    "tiles have {}x{} pixels: use data.image_size": "data/test_common_forms.py::test_tiles_of_another_size_name_the_key_that_works",
    "is for format=wsinfer": "commands/test_explain_and_export.py::test_export_for_wsinfer_writes_the_model_and_its_configuration",
    "tries the failed points again": "sweeps/test_sweep.py::test_a_failed_point_starts_afresh_and_a_cut_off_one_keeps_its_files",
    "data.mpp=MICRONS says it": "config/test_pixel_size.py::test_tiles_of_nearly_the_same_pixel_size_are_taken",
    "(data.mpp_tolerance={})": "config/test_pixel_size.py::test_the_tolerance_can_be_widened_and_an_unknown_size_refuses_nothing",
    "use data.folds={}{}, or {}": _RARE,
    ", or use data.limit={}": "data/test_rare_classes.py::test_a_limit_that_a_message_names_works",
    "use data.test_fraction=0, or {}": _RARE,
    "use at most data.folds={}": _RARE,
    "several are swept with histolight train -m": "reliability/test_remedies.py::test_a_number_with_a_comma_and_a_list_name_what_can_be_meant",
    "has no unlabelled tiles to predict": "commands/test_predict.py::test_a_folder_of_images_needs_no_labels",
    "tiles without labels can only be predicted": "commands/test_predict.py::test_a_folder_of_images_needs_no_labels",
    "the test tiles beside it": "commands/test_predict.py::test_kaggles_test_tiles_become_a_submission_in_its_order",
    "choose one with data.groups=FILE": "data/test_kaggle.py::test_slides_come_from_data_groups",
    "name the slides with data.groups=CSV": "data/test_kaggle.py::test_slides_come_from_data_groups",
    "restore them, or evaluate other tiles": _EVALUATED,
    "or give other tiles with data=SOURCE": _EVALUATED,
    "is for other tiles: give them": _EVALUATED,
    "export a run with data.stain=reinhard": "inference/test_export.py::test_reinhards_normalisation_is_inside_and_macenkos_is_refused",
    "export a run with data.stain=none": "inference/test_wsinfer.py::test_the_softmax_of_the_file_is_the_score_of_the_network",
    "make one with histolight evaluate": "commands/test_evaluate.py::test_levels_are_chosen_on_an_earlier_evaluation",
    "continue it with histolight train run={}": "training/test_fit.py::test_an_interrupted_run_continues_to_the_same_result",
    "holds a run that failed{}: delete it": "reliability/test_remedies.py::test_a_run_that_its_configuration_ended_has_a_folder_that_can_be_cleared",
    "or change its configuration with like={}": "reliability/test_remedies.py::test_a_run_that_its_configuration_ended_has_a_folder_that_can_be_cleared",
    "the backbone is random and stays so": "training/test_lora.py::test_a_backbone_that_stays_random_is_warned_of",
    "(no data.mpp when it was trained)": "commands/test_predict_slides.py::test_a_run_that_does_not_know_its_pixel_size_asks_for_it",
    "and WSInfer must know": "inference/test_wsinfer.py::test_a_given_pixel_size_is_written_and_an_unknown_one_asked_for",
    "use model.pooling=mean, or a ResNet": "models/test_backbones.py::test_networks_that_average_no_map_cannot_pool_the_centre",
    "has no ImageNet weights: use": "models/test_p4m.py::test_imagenet_weights_are_refused_and_the_group_needs_none",
    "add model.trust_remote_code=true": "models/test_hub_models.py::test_code_of_a_model_runs_only_where_it_is_asked_for",
    "at full resolution (40x": "slides/test_reader.py::test_plain_pictures_are_read_where_their_pixel_size_is_given",
    "use hydra.launcher.n_jobs={}": "sweeps/test_devices.py::test_the_launcher_starts_as_many_points_as_the_gpus_take",
    "choose another name=NAME": "sweeps/test_sweep.py::test_a_name_that_is_taken_is_refused",
    "choose another folder with hydra.sweep.dir=FOLDER": "reliability/test_remedies.py::test_a_sweep_that_cannot_be_written_names_the_folder_of_a_sweep",
    "would take all {} GPUs": "sweeps/test_sweep.py::test_all_gpus_for_each_point_are_refused_unless_joblib_shares_them_out",
    "trainer.find_lr=false": "training/test_learning_rates.py::test_the_curve_is_drawn_and_logged_and_the_training_is_none_the_worse",
    "use trainer.devices=1 or freeze_epochs=0": "reliability/test_generalisation.py::test_the_backbone_is_still_until_it_thaws",
    "needs a single process: use trainer.devices=1": "training/test_probes.py::test_a_probe_is_a_run_like_any_other",
    "out of GPU memory with data.batch_size={}": "training/test_memory.py::test_out_of_memory_names_keys_that_help",
    "{} for the same optimizer steps": "training/test_memory.py::test_out_of_memory_names_keys_that_help",
    "use model.checkpointing=true or a smaller network": "training/test_memory.py::test_the_keys_fit_the_training",
    "in its CUDA graphs: use trainer.compile=default": "training/test_memory.py::test_graphs_and_added_gradients_exclude_each_other",
    "use trainer.deterministic=false or another network": "training/test_fit.py::test_what_has_no_deterministic_implementation_is_named",
    "name it with data.columns.image=NAME": "data/test_parquet.py::test_one_of_two_columns_of_images_is_named_as_the_message_says",
    "one of two names that data.classes": "data/test_parquet.py::test_labels_are_numbers_truth_values_or_names",
    "name those that are tumour with slides.positive": _SLIDES,
    "give their folder with slides.annotations=FOLDER": _SLIDES,
    "the slides are cut is unknown": _SLIDES,
    "look at it with histolight explore": "commands/test_annotated_slides.py::test_explore_shows_where_the_tiles_lie",
    "model.weights=PATH (a state dict)": "models/test_backbones.py::test_a_failed_download_names_the_ways_on",
    "or scheduler=constant": "models/test_losses_and_optimizers.py::test_one_cycle_that_cannot_rise_and_fall_is_refused",
    "give the runs a test part": "ranking/test_ranking.py::test_by_ranks_on_a_test_part_that_chose_nothing",
    "or name up to three rows beforehand": "ranking/test_ranking.py::test_few_slides_with_tumour_rank_three_rows_and_no_more",
    "give the slides' folder": "slides/test_reader.py::test_a_folder_without_slides_or_none_at_all_is_refused",
    "or start a new run with like={}": "reliability/test_remedies.py::test_a_run_whose_tiles_are_others_now_is_a_pattern_for_a_new_one",
    "make it writable for you, or use like={}": "reliability/test_remedies.py::test_a_foreign_run_that_cannot_be_continued_is_a_pattern_for_a_new_one",
}  # fmt: skip

_EXTRA = "needs an environment without the extra, in which it is then installed"
_GPU = "needs a GPU"
_RULE = "states a rule or a fact; nothing to type follows from it"
_LUCK = "may help or not: it depends on what diverged"

# Part of a message; why no test has tried what it names.
UNTRIED = {
    **dict.fromkeys(
        ("{} is a plugin that is not installed", "data=parquet needs pyarrow", "explore runs= needs cleanlab",
         "histolight export needs {}", "needs timm: install", "a search needs optuna", "needs transformers: install", "needs safetensors: install",
         "needs peft: install", "whole slides need {}", "histolight embed needs pyarrow", "logger={} needs {}"),
        _EXTRA,
    ),
    **dict.fromkeys(
        ("another process holds it (nvidia-smi", "trainer.accelerator=gpu, but PyTorch sees no GPU", "GPU %s has %.1f GB free"), _GPU
    ),
    **dict.fromkeys(
        ("is not a key of histolight compare", "is not a key of histolight doctor", "is needed (data.image_size={})",
         "is cut at slides.model_mpp={}", "data.split=random does not", "data.mpp=%g is taken"),
        _RULE,
    ),
    **dict.fromkeys(
        ("features that are not finite: try", "logits that are not finite ({}): try", "features that are not finite ({}): try",
         "the training diverged; try", "try a lower optimizer.lr or trainer.clip=1"),
        _LUCK,
    ),
    "Kaggle's tiles need an account": "needs an account at Kaggle",
    "without internet access use model.weights=FILE": "needs a network of the hub's file beside it",
    "has no labelled tiles: it is for": "every source that is shipped can have labels",
}  # fmt: skip
