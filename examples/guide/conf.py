"""The site: `python -m sphinx -W --keep-going examples/guide build/site` (needs the extra `docs`).

Sphinx, since the reference is then what `help()` shows, read from the imported package; since a missing page or section
is a warning, and a warning an error; and since its search is one script beside the pages, which works from a folder,
without a server or a network. furo, for phones, dark and light; myst-parser, for pages in Markdown.
"""

import re
import subprocess
import sys
from pathlib import Path

import gimli_core

GUIDE = Path(__file__).parent
GALLERY = GUIDE.parents[1] / "build" / "gallery"  # what the commands of gallery.md make

project = "gimli_core"
copyright = "the authors of gimli_core, Apache-2.0"
version = release = gimli_core.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]
html_theme = "furo"
html_title = f"gimli_core {release}"
GALLERY.mkdir(parents=True, exist_ok=True)  # before Sphinx asks whether it is there
html_extra_path = [str(GALLERY)]
html_copy_source = False
html_show_sphinx = False
templates_path: list[str] = []
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_rtype = False
default_role = "literal"

SECTION = re.compile(r"(Args|Returns|Raises):(.*)")
LITERAL = re.compile(r"(`[^`]+`)")


def readable(app, what, name, obj, options, lines) -> None:
    """The package's docstrings as reStructuredText: equations as they stand, and stars and bars that mean themselves.

    An indented paragraph is an equation or a table, unless it belongs to a section of arguments.
    """
    made: list[str] = []
    section = equation = False
    lines[:] = joined(lines)
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        indented = line.startswith("    ")
        if line and not indented:
            header = SECTION.fullmatch(line)
            section, equation = bool(header), False
            if header and header[2] and after.startswith("    "):  # "Args: as in …, and", and then some
                made += [escaped(line), ""]
                line = f"{header[1]}:"
        if indented and not before.strip() and not section and not equation:
            made += [".. code-block:: text", ""]
            equation = True
        made.append(line if equation or line.lstrip().startswith((">>>", "...")) else escaped(line))
    lines[:] = made


def joined(lines: list[str]) -> list[str]:
    """Inline code, and names before a colon, that go over the end of a line, on one line."""
    made: list[str] = []
    for line in lines:
        name_goes_on = made and re.fullmatch(r"    [\w, ]+,", made[-1])
        if made and (made[-1].count("`") % 2 or name_goes_on):
            made[-1] += f" {line.strip()}"
        else:
            made.append(line)
    return made


def escaped(line: str) -> str:
    """Inline code in two backticks, and what would be markup in RST outside of it taken for what it is."""
    made = ""
    for part in LITERAL.split(line):
        if LITERAL.fullmatch(part):
            made += ("\\ " if made[-1:].isalnum() else "") + f"`{part}`"
        else:
            ends_a_literal = made.endswith("`") and part[:1].isalnum()
            made += ("\\ " if ends_a_literal else "") + re.sub(r"([*|]|\w_(?=\W|$))", r"\\\1", part)
    return made


def make_gallery(app) -> None:
    """Run the commands of gallery.md, where their results are not there yet."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    commands = re.findall(r"^```sh\n(.*?)\n```$", (GUIDE / "gallery.md").read_text(encoding="utf-8"), re.M | re.S)
    for command in commands:
        program, *arguments = command.split()
        if not (GALLERY / arguments[arguments.index("--out") + 1]).exists():
            subprocess.run([Path(sys.executable).with_name(program), *arguments], cwd=GALLERY, check=True)


def setup(app) -> None:
    app.connect("autodoc-process-docstring", readable, priority=400)  # before napoleon
    app.connect("builder-inited", make_gallery)
