"""The site, from docs/*.md and the docstrings: `uv run --group docs sphinx-build -W docs build/site`.

Sphinx, not MkDocs: the docstrings refer to each other by Sphinx's roles, and links from these pages to files beside
docs/ (measurements, sources) become downloads, so that the same page serves in the repository and on the site.
"""

from importlib.metadata import version as installed

from sphinx.application import Sphinx

project = "histolight"
author = "the histolight contributors"
project_copyright = f"2026, {author}. For research; not a medical device, not for diagnosis"
version = release = installed("histolight")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["images"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "histolight"
html_show_sphinx = False


def setup(app: Sphinx) -> None:
    """Lead links to the repository's page for contributors, which this site includes, to the site's own."""
    app.connect("source-read", _lead_to_the_site)


def _lead_to_the_site(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = source[0].replace("](../CONTRIBUTING.md)", "](contributing.md)")
