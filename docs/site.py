"""MkDocs hooks, named in mkdocs.yml: the pages of the repository become a site that needs no network.

    README.md, CONTRIBUTING.md, CHANGELOG.md     pages, too; README.md is the front page
    lm/model/attention.py                        a page of its docstrings and source; links to the file lead there
    [`softmax`](../lm/model/attention.py)        leads to that function
    docs/zh/, README.zh.md                       the Chinese part, with a navigation and a language of its own

The pages themselves stay plain Markdown whose links work in the repository. What a page would load from elsewhere when
somebody reads it ends the build.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "zh/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SITE_NAMES = {False: "From raw text to a language model", True: "从原始文本到语言模型"}  # by whether it is Chinese
FENCE = re.compile(r"^(```|~~~).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\[\]]*\])*\])\((?P<target>[^()\s]+)\)")
MODULE = re.compile(r"(?<![\[`])`(?P<path>(?:lm|tokenization)/[\w/]+\.py)`(?![\]`])")
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data)=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|prev|next|alternate))[^>]*?\bhref=[\"']?(?:https?:)?//[^\"'\s>]+"
    r"|url\([\"']?(?:https?:)?//[^)]+\)|@import\s+[\"'](?:https?:)?//[^\"']+"
)


# --- from a place in the repository to a place in the site -----------------------------------------------------------


def place(path: str) -> str:
    """Returns where a file or folder of the repository is in the site, as the path of a source of MkDocs."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith(("lm/", "tokenization/")) and path.endswith(".py"):
        return f"code/{path.removesuffix('.py').removesuffix('/__init__')}.md"
    return f"files/{path}"


def split_code(markdown: str) -> Iterator[tuple[bool, str]]:
    """Yields the parts of a page, each with whether it is a fenced block of code."""
    start = 0
    for block in FENCE.finditer(markdown):
        yield False, markdown[start : block.start()]
        yield True, block[0]
        start = block.end()
    yield False, markdown[start:]


def slug(heading: str) -> str:
    """Returns the anchor of a heading, as GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(markdown: str) -> set[str]:
    """Returns the anchors of a page: those of its headings, and <a id="..."></a>."""
    text = "".join(part for is_code, part in split_code(markdown) if not is_code)
    headings = re.findall(r"^#+ +(?:<a id=\S+></a> *)?(.+?) *$", text, flags=re.MULTILINE)
    named = {slug(LINK.sub(lambda found: found["text"][1:-1], heading)) for heading in headings}
    return named | set(re.findall(r'<a id="([^"]+)"></a>', text))


def links(markdown: str) -> list[tuple[str, str]]:
    """Returns the text and the target of each link of a page that does not lead out of the repository."""
    text = "".join(part for is_code, part in split_code(markdown) if not is_code)
    targets = [(found["text"].lstrip("!")[1:-1], found["target"]) for found in LINK.finditer(text)]
    return [(name, target) for name, target in targets if not re.match(r"\w+:", target)]


def leads_to(page: str, target: str) -> str:
    """Returns the path in the repository that a link of a page leads to, without its anchor."""
    path = target.partition("#")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page


def relink(markdown: str, page: str) -> str:
    """Returns a page of the repository with the links that it has in the site, those to modules added."""

    def to_site(found: re.Match[str]) -> str:
        target, name = found["target"], found["text"][1:-1].strip("`")
        if re.match(r"\w+:|#", target):
            return found[0]
        path, anchor = leads_to(page, target), target.partition("#")[2]
        if place(path).startswith("code/") and re.fullmatch(r"[\w.]+", name) and not name.endswith(".py"):
            anchor = f"{module_name(path)}.{name}"
        return f"{found['text']}({link(page, path)}{'#' * bool(anchor)}{anchor})"

    def to_module(mention: re.Match[str]) -> str:
        if not (ROOT / mention["path"]).is_file():
            return mention[0]
        return f"[{mention[0]}]({link(page, mention['path'])})"

    parts = split_code(markdown)
    return "".join(part if is_code else MODULE.sub(to_module, LINK.sub(to_site, part)) for is_code, part in parts)


# --- pages of code ---------------------------------------------------------------------------------------------------


def modules() -> list[str]:
    """Returns the paths of all modules in the repository, each folder's __init__.py before its others."""
    return [path.relative_to(ROOT).as_posix() for room in ("lm", "tokenization") for path in sorted_room(ROOT / room)]


def sorted_room(folder: Path) -> list[Path]:
    rooms = [path for path in sorted(folder.iterdir()) if (path / "__init__.py").is_file()]
    files = sorted(folder.glob("*.py"), key=lambda path: (path.name != "__init__.py", path.name))
    return files + [path for room in rooms for path in sorted_room(room)]


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def code_page(path: str) -> str:
    """Returns the Markdown of a module's page; that of a folder lists what is in it."""
    page = f"# {path.removesuffix('__init__.py')}\n\n::: {module_name(path)}\n"
    if not path.endswith("__init__.py"):
        return page
    folder = path.removesuffix("/__init__.py")
    inside = [other for other in modules() if str(PurePosixPath(other.removesuffix("/__init__.py")).parent) == folder]
    names = [PurePosixPath(other.removesuffix("/__init__.py")).name for other in inside]
    rows = [f"| [{name}]({link(path, other)}) | {title(other)} |" for name, other in zip(names, inside, strict=True)]
    return "\n".join([page, "## In this folder", "", "| | |", "|---|---|", *rows, ""])


def link(page: str, other: str) -> str:
    """Returns the target of a link from one file's page in the site to another's."""
    return posixpath.relpath(place(other), posixpath.dirname(place(page)) or ".")


def title(path: str) -> str:
    """Returns the first sentence of a module's docstring."""
    import ast

    docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[.:;]) ", paragraph)[0].rstrip(":;.").replace("|", "\\|")


# --- MkDocs' events --------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Adds the Chinese pages to the navigation, in the order of the English ones."""
    config.mdx_configs["toc"]["slugify"] = lambda heading, separator: slug(heading)
    order = [page for item in config.nav for page in pages_of(item)]
    names = [path.name for path in (ROOT / "docs/zh").glob("*.md")]
    chinese = [f"zh/{name}" for name in sorted(names, key=lambda name: [*order, name].index(name))]
    config.nav = [*config.nav, {"中文": ["zh/index.md", *chinese]}]
    config.extra["alternate"] = [
        {"name": "English", "link": "index.html", "lang": "en"},
        {"name": "中文", "link": "zh/index.html", "lang": "zh"},
    ]
    return config


def pages_of(item: Any) -> list[str]:
    """Returns the pages of an item of the navigation."""
    if isinstance(item, str):
        return [item]
    inside = next(iter(item.values()))
    return [inside] if isinstance(inside, str) else [page for one in inside for page in pages_of(one)]


def on_files(files: Any, config: Any) -> Any:
    """Adds what lies outside docs/: the pages of the repository's top, a page for each module, and linked files."""
    from mkdocs.structure.files import File

    for page in PAGES:
        if (ROOT / page).is_file():
            files.append(File.generated(config, PAGES[page], content=(ROOT / page).read_text(encoding="utf-8")))
    for path in modules():
        files.append(File.generated(config, place(path), content=code_page(path)))
    pages = [file for file in files if file.is_documentation_page() and not file.src_uri.startswith("code/")]
    outside = {leads_to(origin(file.src_uri), target) for file in pages for _, target in links(file.content_string)}
    for path in sorted(path for path in outside if place(path).startswith("files/") and (ROOT / path).is_file()):
        files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def origin(src_uri: str) -> str:
    """Returns the path in the repository of a page of the site."""
    return next((path for path, page in PAGES.items() if page == src_uri), f"docs/{src_uri}")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return markdown if page.file.src_uri.startswith("code/") else relink(markdown, origin(page.file.src_uri))


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    """Gives each page the navigation and the words of its language."""
    from mkdocs.structure.nav import Navigation

    chinese = page.file.src_uri.startswith("zh/")
    config.theme["language"] = "zh" if chinese else "en"
    config.site_name = SITE_NAMES[chinese]
    sections = [item for item in nav.items if item.title == "中文"]
    items = sections[0].children if chinese else [item for item in nav.items if item not in sections]
    context["nav"] = Navigation(items, nav.pages)
    for name in ("previous_page", "next_page"):
        other = getattr(page, name)
        if other is not None and other.file.src_uri.startswith("zh/") != chinese:
            setattr(page, name, None)
    return context


def on_post_build(config: Any) -> None:
    """Ends the build if a page or a style sheet would load anything from elsewhere."""
    from mkdocs.exceptions import PluginError

    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            for load in LOADED.findall(path.read_text(encoding="utf-8")):
                raise PluginError(f"{path}: {load} is loaded from elsewhere when the page is read")
