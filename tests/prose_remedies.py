"""Advice that the package's messages give in prose, and what tries it; ``remedies.py`` has what is named as it is typed.

A row is a remedy and not a message: "choose another network" is tried once, however many messages say so. A part must say
what to do it with (a bare "give" would let any message pass).
"""

# ruff: noqa: E501  # a row of a table a line
from __future__ import annotations

import re

_VERBS = (
    "accept|add|ask|begin|choose|close|continue|convert|copy|correct|delete|download|export|free|give|install|join|keep|"
    "leave|look|make|mend|mount|move|name|put|quote|remove|rename|renew|resample|restore|save|say|scan|see|set|shorten|"
    "start|train|try|uninstall|unset|unzip|update|upgrade|use|wait|write"
)
# A clause that begins with what to do; no noun ("set of …"), no other sense ("name cannot …", "copy with …").
ADVICE = re.compile(
    rf"(?:^|[:;] (?:or |then |and )?|, (?:or|and|then) |\) or |, )(?:to [^:;,]*, )?(?:{_VERBS})\b(?! (?:of|cannot|with the)\b)"
    r"|: histolight (?:[a-z]+|\{\}) [a-z-]"
)

# As in ``remedies.py``.
TRIED = [
    ("run= is missing: histolight evaluate run=DIR", "evaluate data=folder data.root=TILES", "evaluate run=RUN data=folder data.root=TILES"),
    ("runs= can be predicted, not evaluated: give one of them, run=DIR", "evaluate runs=[RUN,RUN2]", "evaluate run=RUN"),
    ("runs= is missing: histolight compare runs=FOLDER", "compare hydra.run.dir=new", "compare runs=RUN"),
    ("best= chooses among several runs: use it with runs=", "predict run=RUN best=2 data=folder data.root=TILES", "predict runs=[RUN,RUN2,RUN3] best=2 data=folder data.root=TILES"),
    ("is not a file: give imagenet, hub, null, or the path of a state dict", "train model.weights=none.pth", "train model.weights=null"),
    ("becomes a folder: use letters, digits, dots, dashes and underscores", "train name=a/b", "train name=a-1.b_c"),
    ("are two averages of the same weights: set one of them", "train trainer.ema=0.9 trainer.swa=0.5", "train trainer.ema=0.9"),
    ("can't be read: write KEY=VALUE", "train seed", "train seed=3"),
    ("nothing can be left out of a configuration; set it to another value", "train ~optimizer.lr", "train optimizer.lr=0.01"),
    ("= is empty: give a value, or leave it out", "train data.root=", "train"),
    ("is several of a group that has one: give {}=NAME", "train logger=[tensorboard,csv]", "train logger=csv"),
    ("=[] is empty: give run directories", "predict runs=[] data=folder data.root=TILES", "predict runs=[RUN,RUN2] data=folder data.root=TILES"),
    ("is not KEY=VALUE: write {}=FOLDER", "evaluate RUN", "evaluate run=RUN"),
    ("can't be read: quote a path with a quote in it", "predict runs=[o'hara,RUN] data=folder data.root=TILES", "predict runs=[\"o'hara\",RUN] data=folder data.root=TILES"),
    ("= is empty: give a value", "predict run= data=folder data.root=TILES", "predict run=RUN data=folder data.root=TILES"),
    ("hydra.run.dir is empty: give the folder for this run", "train hydra.run.dir=", "train hydra.run.dir=new"),
    ("is a text, which a mapping in braces would change: write {}=VALUE apart", "train data={root:1e3}", "train data.seed=0 name=1e3"),
    ("is not a folder; give the one that holds the tiles", "tiles data=folder data.root=nowhere data.image_size=32", "tiles data=folder data.root=TILES data.image_size=32"),
    ("only: give both classes", "tiles data=folder data.root=ONE data.image_size=32", "tiles data=folder data.root=TILES data.image_size=32"),
    ("names the labels of the tiles, not their slides: give a CSV id,<slide column>", "tiles data=folder data.root=TILES data.image_size=32 data.groups=LABELS", "tiles data=folder data.root=TILES data.image_size=32 data.groups=GROUPS"),
    ("is not a file: give a CSV id,<{} column>", "tiles data=folder data.root=TILES data.image_size=32 data.groups=none.csv", "tiles data=folder data.root=TILES data.image_size=32 data.groups=GROUPS"),
    ("is not a file: give auto, random or a CSV id,split", "tiles data=folder data.root=TILES data.image_size=32 data.split=none.csv", "tiles data=folder data.root=TILES data.image_size=32 data.split=random"),
    ("gives the part {} to {}: write train, val or test", "tiles data=folder data.root=TILES data.image_size=32 data.split=WRONG", "tiles data=folder data.root=TILES data.image_size=32 data.split=PARTS"),
    ("adapt=prior calibrates the scores already: leave calibrate out", "evaluate run=RUN adapt=prior calibrate=true data=folder data.root=TILES", "evaluate run=RUN adapt=prior +data=folder ++data.root=TILES"),  # plus signs change nothing
    ("is not a folder: give a run directory such as", "evaluate run=nowhere", "evaluate run=RUN"),
    ("can't be swept: give one value", "train -m name=a,b seed=0,1", "train -m name=a seed=0,1"),
    ("chooses leaders among points of one seed and split: give {} one value", "train -m sweep.seeds=3 seed=0,1 optimizer.lr=1e-3,1e-4", "train -m sweep.seeds=3 seed=0 optimizer.lr=1e-3,1e-4"),
    ("is empty: give the smaller number first", "train -m sweep=optuna optimizer.lr=interval(1e-3,1e-4)", "train -m sweep=optuna optimizer.lr=interval(1e-4,1e-3)"),
    ("add model.input_size={}", "train data.image_size=32 model.name=alexnet", "train data.image_size=32 model.name=alexnet model.input_size=64"),
    ("is none: add model.input_size={}", "network model.name=p4m_densenet data.image_size=100", "network model.name=p4m_densenet data.image_size=100 model.input_size=112"),
    ("holds no run: give a folder with run directories", "runs TILES", "runs RUN"),
    ("is an evaluation of a run, not a run: give the run's own folder", "runs EVALUATION", "runs RUN"),
]  # fmt: skip

_PROSE = "reliability/test_prose_remedies.py::"
_CONTINUED = "training/test_fit.py::test_an_interrupted_run_continues_to_the_same_result"
_FULL = "training/test_fit.py::test_a_full_disk_is_one_line_and_the_run_can_go_on"
_EXPLAINED = "commands/test_explain_and_export.py::test_explain_writes_page_pictures_and_tables"
_EXPORTED = "inference/test_export.py::test_a_network_of_another_family_is_exported_with_parity"
_FOLDERS = f"{_PROSE}test_folders_are_mended_as_their_messages_say"
_LISTS = f"{_PROSE}test_a_list_of_data_sets_is_mended_as_its_message_says"
_DELETED = "reliability/test_faults.py::test_a_damaged_pack_says_which_folder_to_delete"
_RIGHTS = f"{_PROSE}test_what_is_made_readable_and_writable_is_read_and_written"
_ENOUGH = f"{_PROSE}test_as_many_tiles_as_a_message_asks_for_are_enough"

TRIED_BY = {
    "see histolight {} --help": f"{_PROSE}test_the_help_that_messages_point_to_is_there",
    "give the data set and the folder: histolight download pcam DIR": "commands/test_download.py::test_all_files_are_downloaded_once_with_their_licence",
    "can't be downloaded: give pcam or kaggle": "commands/test_download.py::test_all_files_are_downloaded_once_with_their_licence",
    "is not the file that was published: move it away, or give another folder": "commands/test_download.py::test_a_file_of_somebody_else_is_left_alone",
    "put the run's own checkpoint back": "inference/test_networks.py::test_a_checkpoint_of_another_network_is_refused_and_the_runs_own_is_taken",
    "give another folder": "commands/test_download.py::test_a_file_of_somebody_else_is_left_alone",
    "interrupted: continue with {}": "commands/test_embed.py::test_the_table_holds_what_the_network_computes_even_after_a_kill",
    ", but a sweep: give one of its runs": "commands/test_predict.py::test_kaggles_test_tiles_become_a_submission_in_its_order",
    "interrupted in epoch {}: continue with {}": _CONTINUED,
    "points completed: continue with {}": "sweeps/test_sweep.py::test_an_interruption_stops_the_sweep_and_says_how_to_continue",
    "have the label {}: use data.limit={}": f"{_PROSE}test_a_sample_of_one_class_names_a_limit_that_has_both",
    "can't be read: quote its special characters": "reliability/test_remedies.py::test_special_characters_are_quoted_as_the_message_says",
    "plan= stands alone: histolight compare plan=FOLDER": "ranking/test_page.py::test_a_plan_from_one_run_says_what_it_assumes",
    "histolight train --cfg hydra shows what there is": "reliability/test_remedies.py::test_what_there_is_of_hydra_is_shown_as_the_message_says",
    "ends in a comma: write the values of a sweep without spaces": "reliability/test_remedies.py::test_values_with_a_space_behind_the_comma_are_joined_as_the_message_says",
    "can't be read: write it without spaces, {}": "reliability/test_remedies.py::test_spaces_about_an_equals_sign_are_left_out_as_the_message_says",
    "run= is missing: histolight {} run=FOLDER": _EXPLAINED,
    "can't be a value of a configuration: give text, a number, true, false or None": "config/test_overrides.py::test_a_dictionary_says_what_words_say",
    "= is no override from Python: use {}": "test_api.py::test_what_is_an_argument_is_no_override",
    "is empty: give at least one folder or Run": "test_api.py::test_what_is_no_run_is_refused",
    "can't be read: give a list of strings, a dictionary or a Config": "config/test_overrides.py::test_a_dictionary_says_what_words_say",
    "give more tiles of it": _ENOUGH,
    "give at least {} of each": _ENOUGH,
    "; save it as 8-bit RGB": f"{_PROSE}test_a_tile_that_is_saved_as_8_bit_rgb_is_read",
    "give it tiles of both classes": f"{_PROSE}test_a_given_test_part_is_mended_as_its_message_says",
    "give training and validation some of them": f"{_PROSE}test_a_given_test_part_is_mended_as_its_message_says",
    "delete this folder to have it made again": _DELETED,
    "has two folders of one part: {}; keep one of them": _FOLDERS,
    "put the tiles of each class into a folder of its own": _FOLDERS,
    "unzip {} there": _FOLDERS,
    "unzip it, and give the CSV": f"{_PROSE}test_tables_are_mended_as_their_messages_say",
    "is not UTF-8 text: save it as a CSV in UTF-8": f"{_PROSE}test_tables_are_mended_as_their_messages_say",
    "name them in its first line": "data/test_common_forms.py::test_tables_of_spreadsheets_are_read",
    "choose one of {} with data.columns.{}=NAME": "data/test_parquet.py::test_one_of_two_columns_of_images_is_named_as_the_message_says",
    "data.columns.split=NAME names another column": "data/test_parquet.py::test_slide_centre_and_part_are_columns",
    "begin it with train, validation or test": "data/test_parquet.py::test_tiles_come_in_order_and_parts_from_file_names",
    "set the environment variable HDF5_USE_FILE_LOCKING=FALSE": f"{_PROSE}test_an_hdf5_file_that_is_open_elsewhere_is_read_as_the_message_says",
    "close it there, or, if nothing changes it, {}": f"{_PROSE}test_an_hdf5_file_that_is_open_elsewhere_is_read_as_the_message_says",
    "names two rows {}: give each another name": _LISTS,
    "say where its tiles belong in a column split": _LISTS,
    "a list can't hold another one, give its rows": _LISTS,
    "gives {} the part {}: write train, val or test": _LISTS,
    "brings its own split: leave split empty in its row": _LISTS,
    "{}: use {}": "data/test_rare_classes.py::test_a_split_that_a_message_names_works",
    "use at most {}": "data/test_splits.py::test_what_is_named_instead_is_the_nearest_that_works",
    "leave this fold out, or join it with another domain": "data/test_domains.py::test_each_fold_leaves_one_domain_out",
    "give each part tiles of both classes there, or leave data.split out": "data/test_rare_classes.py::test_a_given_split_without_a_class_on_one_side_names_what_works",
    "move that file away": f"{_PROSE}test_a_file_in_the_way_of_the_cache_is_moved_as_the_doctor_says",
    "choose another folder with {}=FOLDER": f"{_PROSE}test_a_file_in_the_way_of_the_cache_is_moved_as_the_doctor_says",
    "make it readable for you": _RIGHTS,
    "make that place writable for you": _RIGHTS,
    "with trainer.devices=1 there is none: unset {}": "reliability/test_faults.py::test_a_rank_of_another_program_is_unset_as_the_message_says",
    "there again, or start a new run with like={}": "reliability/test_remedies.py::test_a_run_whose_epochs_were_edited_is_a_pattern_for_a_new_one",
    "make room": _FULL,
    "then continue with {}": _FULL,
    "mend that": _FULL,
    "then give the same command again": "commands/test_predict.py::test_killed_it_goes_on_to_the_same_bytes",
    "choose a run of another network": _EXPLAINED,
    "): export another run": _EXPORTED,
    "wait for it, or use another folder": "test_runs.py::test_a_claimed_folder_is_held_and_an_unused_one_goes_again",
    "which histolight did not write: move it, or choose another folder": "heatmaps/test_score.py::test_every_file_of_a_slide_is_there",
    "leave adapt out": "commands/test_evaluate.py::test_other_tiles_calibrated",
    "and these are its own: leave {} out": "commands/test_evaluate.py::test_its_own_parts_have_exactly_the_figures_of_the_training",
    "was chosen on the same tiles flatter; give others": "commands/test_evaluate.py::test_levels_are_chosen_on_an_earlier_evaluation",
    "choose a threshold on labelled tiles of a like share": "commands/test_evaluate.py::test_levels_are_chosen_on_an_earlier_evaluation",
    "give tiles of that size": "inference/test_networks.py::test_logits_of_an_ensemble_are_those_of_each_member_in_the_order_of_the_rows",
    "; if that is gone, delete {}": f"{_PROSE}test_a_marker_whose_holder_is_gone_is_deleted_as_the_message_says",
    "choose another network": "models/test_backbones.py::test_every_network_of_torchvision_gives_one_logit_or_says_that_it_cannot",
    "in front of one last layer: choose another": "commands/test_embed.py::test_the_table_holds_what_the_network_computes_even_after_a_kill",
    "save model.state_dict()": "models/test_weight_forms.py::test_what_wraps_the_weights_is_taken_off",
    "give runs on more tiles or slides": "ranking/test_ranking.py::test_configurations_are_judged_by_their_seeds_with_the_covariance_over_slides",
    "): give completed runs": "ranking/test_runs.py::test_one_bad_run_among_good_ones_is_listed",
    "histolight train like=FOLDER seed=NUMBER": "ranking/test_ranking.py::test_by_takes_further_seeds_of_the_chosen_points_from_another_folder",
    "names one row: name two": "ranking/test_ranking.py::test_among_takes_rows_by_name_or_folder",
    "of that class, or name up to {} rows beforehand": "ranking/test_ranking.py::test_few_slides_with_tumour_rank_three_rows_and_no_more",
    "have the label {}: give more runs": "exploration/test_labels.py::test_a_cross_validation_lists_what_it_doubts",
    "give the runs of one cross-validation": "exploration/test_labels.py::test_a_cross_validation_lists_what_it_doubts",
    "): give a PNG of the slide's name": "slides/test_tissue.py::test_a_mask_of_ones_own_is_stretched_over_the_slide",
    "give a name such as ${hydra.job.num}": "sweeps/test_sweep.py::test_folders_of_hydra_can_be_overridden",
    "put ${hydra.job.num} in it": "sweeps/test_sweep.py::test_folders_of_hydra_can_be_overridden",
    "put the folder itself there, or delete the link": "reliability/test_foreign_files.py::test_a_point_that_is_a_link_or_holds_files_of_others_is_refused",
    "or choose another logger": "training/test_loggers.py::test_csv_logs_curves_and_final_figures",
    "leave model.freeze and freeze_epochs out": "training/test_lora.py::test_adapters_alone_learn_and_are_merged",
    "that is not UTF-8: rename that folder or file": "config/test_compose.py::test_a_path_that_no_configuration_can_hold_is_refused",
    "leaves gaps between tiles of {} pixels: use at most {}": "heatmaps/test_score.py::test_a_denser_stride_gives_a_finer_map",
}  # fmt: skip

_WHOLE = "is the same file once more, but whole, which the other tests of its reader read"
_PROGRAM = "needs another program to make a file in a form that the tests of its reader read"
_MACHINE = "changes what is installed on the machine"
_TILES = "needs the tiles as they were, with which every test of these commands works"
_GPU = "needs a GPU"

UNTRIED = {
    **dict.fromkeys(
        ("download it again", "copy it again", "as annotations ({}): export them again", "give the files of one data set"), _WHOLE
    ),
    **dict.fromkeys(
        ("save it as a pyramidal TIFF", "convert it to a pyramidal TIFF", "join them into one", "scan it again more finely",
         "square ones are needed: resample it", "and no smaller level: give one", "unzip it yourself", "keep one of them",
         "has the name of {}: rename one of them"),
        _PROGRAM,
    ),
    **dict.fromkeys(
        ("install the two from one index", "update the driver to one that knows CUDA", "unset CUDA_VISIBLE_DEVICES to use it",
         "install a C++ compiler", "uninstall it now without running it", "of hydra-core can't be read"),
        _MACHINE,
    ),
    "restore them": _TILES,
    "out of GPU memory: use data.batch_size={}": _GPU,
    "start each training with srun --ntasks=1": "needs SLURM",
    "is gated: accept its licence at {}": "needs an account at the hub",
    "write the value itself": "is for a configuration that came from elsewhere, in which only its owner knows the value",
    "look at the pictures before using the figures": "states a rule; nothing is mended by it",
    "inside: give uint8 RGB tiles": "is for readers of an exported file; every test of the export does it",
    "slides for {} tiles: give one slide": "is for callers of a function in Python, as all its other tests call it",
    "scores have shape {} and labels {}: give one": "is for callers of a function in Python, as all its other tests call it",
    "delete the folder checkpoints to train this run from its first epoch": "is the beginning of every run, which has no such folder",
}  # fmt: skip
