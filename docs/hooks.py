"""Add the generated reports to the site, so that links to them work there as they do in a checkout.

Pages link to `../results/tables/...`, which is outside `docs/`. In the site the same files are at
`results/tables/...`.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPORTS = Path("results", "tables")
LINK = re.compile(rf"(?<=\]\()\.\./(?={REPORTS.as_posix()}/)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every report and picture."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / REPORTS).rglob("*")):
        if path.suffix in (".md", ".svg"):
            files.append(File.generated(config, path.relative_to(root).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at where the reports are in the site."""
    return LINK.sub("", markdown)
