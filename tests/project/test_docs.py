"""Every block of every page runs, or says why not; every flag, file and name on it exists.

`<!-- no-run: REASON -->` before a block leaves it out; its commands are still read, as the command
line reads them. Python blocks of a page run in order, in one namespace, where `runs/` has small
models. Where mkdocs is installed the site is built from the pages.
"""

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from ml_collections import config_flags

import ddpm_jax
import may_import
import pages
from ddpm_jax import cli, validation
from ddpm_jax import config as config_lib
from ddpm_jax.arguments import with_bundled
from ddpm_jax.configs import cifar10
from ddpm_jax.evaluation import evaluate as evaluate_lib
from ddpm_jax.inference import task_inputs

pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # absl's
ROOT = pages.ROOT
PACKAGE = ROOT / "ddpm_jax"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md",
         *sorted((ROOT / "docs").rglob("*.md"))]
PAGES.remove(ROOT / "docs/extending.md")  # It changes files: test_extending.py.
PROGRAMS = ("main.py", "ddpm-jax", "python", "pip", "pytest", "flake8", "mkdocs", "tox",
            "gcloud", "srun")
FOLDERS = "tests|configs|benchmarks|docs|ddpm_jax|notebooks"
ENDINGS = ("py", "gif", "json", "jsonl", "npz", "png", "csv", "md")
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = {}  # By the last part of their names.
for _file in PACKAGE.rglob("*.py"):
    _parts = _file.relative_to(ROOT).with_suffix("").parts
    _parts = _parts[:-1] if _parts[-1] == "__init__" else _parts
    MODULES.setdefault(_parts[-1], []).append(".".join(_parts))
SETTINGS = {name for name, _ in config_lib.leaves(cifar10.get_config())}
FLAGS = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["ddpm_jax.cli"]} | {"help"}
CODE = "".join(
    path.read_text() for folder in ("ddpm_jax", "configs", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py") if path.name != "test_docs.py"
)
WORDS = set(re.findall(r"[A-Za-z_]\w+", CODE))
ELSEWHERE = set(  # Names of other programs and of what users have.
    "cuda13 tpu xla_gpu_all_reduce_combine_threshold_bytes xla_gpu_deterministic_ops".split()
)


def page_id(page):
    return page.relative_to(ROOT).as_posix()


def spans(page):
    """What stands in single backticks, lines joined."""
    text = pages.BLOCK.sub("", page.read_text())
    assert text.count("`") % 2 == 0, f"{page_id(page)}: a backtick is missing"
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(code):
    """The commands of a shell block, as lists of words, continued lines and variables put in."""
    variables = {}
    for line in code.replace("\\\n", " ").splitlines():
        if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
            variables[f"${assigned[1]}"] = assigned[2]
            continue
        for name, value in variables.items():
            line = line.replace(name, value)
        for command in re.split(r"&&|\|", line):
            if words := shlex.split(command, comments=True):
                yield words


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_settings_files_and_names_exist(page):
    text = page.read_text()
    for setting in re.findall(r"(?<![\w/])(?:--)?config\.([a-z_]+\.[a-z_]+)", text):
        assert setting in SETTINGS, f"{page_id(page)}: config.{setting} is no setting"
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./]+)`", text):
        assert (ROOT / path).exists(), f"{page_id(page)}: {path} does not exist"
    for name in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / name).exists() or any(PACKAGE.rglob(name)), (
            f"{page_id(page)}: {name} does not exist")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), f"{page_id(page)}: {target} does not exist"
    for module, name in re.findall(r"`([a-z_]+)\.([a-zA-Z_]\w*)(?:\([^`]*)?`", text):
        if module in MODULES and name not in ENDINGS:
            group = module == "config" and name in cifar10.get_config()
            homes = map(importlib.import_module, MODULES[module])
            assert group or f"{module}.{name}" in SETTINGS or any(
                hasattr(home, name) for home in homes
            ), f"{page_id(page)}: {module}.{name} does not exist"
    for path in re.findall(r"\bddpm_jax((?:\.[A-Za-z_]\w*)+)", text):
        assert resolves(path), f"{page_id(page)}: ddpm_jax{path} does not exist"


def resolves(path):
    """Whether `ddpm_jax` + path, such as ".data.digits", is a module or a name in one."""
    value, *names = ddpm_jax, *path.split(".")[1:]
    for i, name in enumerate(names):
        try:
            value = importlib.import_module(".".join(["ddpm_jax", *names[: i + 1]]))
        except ModuleNotFoundError:
            if not hasattr(value, name):
                return False
            value = getattr(value, name)
    return True


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_named_tests_are_in_the_named_files(page):
    """In "`test_a`, `test_b` of `tests/room/test_file.py`"."""
    names = r"((?:`test_\w+`(?: \(slow\))?(?:,? and |, | ))+)of `(tests/[\w/]+\.py)`"
    for tests, file in re.findall(names, " ".join(page.read_text().split())):
        for name in re.findall(r"test_\w+", tests):
            assert f"def {name}(" in (ROOT / file).read_text(), f"{page_id(page)}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_words_of_code_are_in_the_code(page):
    """A name that was changed, or never was, stands in no file."""
    for span in spans(page):
        words = shlex.split(span) if span.count("'") != 1 else [span]
        if words[0] in PROGRAMS[1:] and len(words) > 1:
            check(words, f"{page_id(page)}: {span}")
        if words[0] in PROGRAMS or re.match(rf"(?:{FOLDERS}|runs)/", span):
            continue
        for flag in re.findall(r"(?<!\w)--([\w.]+)", span):
            assert flag in FLAGS or flag.removeprefix("config.") in SETTINGS, (
                f"{page_id(page)}: --{flag} is no flag")
        for word in re.findall(r"\b[a-z_]\w+", span):
            assert word in WORDS | ELSEWHERE, f"{page_id(page)}: {word}, in `{span}`, is no name"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_are_such(page):
    for language, code, reason in pages.blocks(page.read_text()):
        if language == "bash":
            assert reason, f"{page_id(page)}: say why this is not run:\n{code}"
            for words in commands(code):
                check(words, f"{page_id(page)}: {' '.join(words)}")


def check(words, where):
    """A command: its program exists, and takes its flags with their values."""
    program, *rest = words
    if re.match("[A-Z_]+=", program):  # A variable of the environment.
        return check(rest, where)
    assert program in PROGRAMS, where
    if program == "srun":
        check(words[words.index("python"):], where)
    elif program == "gcloud":
        remote, = (word.partition("=")[2] for word in rest if word.startswith("--command="))
        check(shlex.split(remote), where)
    elif program == "pip":
        for extra in ",".join(re.findall(r"^\.\[(.+)\]$", rest[-1])).split(","):
            assert f"\n{extra} =\n" in (ROOT / "setup.cfg").read_text() or not extra, where
    elif words[:2] == ["python", "-m"]:
        source = source_of(rest[1])
        for flag in re.findall(r" (--\w+)", f" {' '.join(rest)}"):
            assert f'add_argument("{flag}"' in source, where
    elif program == "ddpm-jax" or rest[:1] == ["main.py"]:
        check_run(rest[1:] if program == "python" else rest, where)
    else:
        assert program != "python" or rest[0] == "-c" or (ROOT / rest[0]).exists(), where


def source_of(module):
    """The text of the file whose `main` runs on `python -m MODULE`."""
    path = ROOT / module.replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    source = path.read_text()
    elsewhere = re.search(r"^from (benchmarks\.\S+) import main$", source, re.MULTILINE)
    return source_of(elsewhere[1]) if elsewhere else source


def check_run(arguments, where):
    """Flags and values of the command line, read and checked as it does before it works."""
    given, values = {a.partition("=")[0].lstrip("-") for a in arguments}, flags.FlagValues()
    assert all(flag in FLAGS or flag.startswith("config.") for flag in given), where
    if "config" not in given:  # That of the run.
        name = re.search(r"--workdir=runs/(\w+)", where)[1]
        shipped = f"configs/{name}.py" if (ROOT / f"configs/{name}.py").exists() else "cifar10"
        arguments = [f"--config={shipped}", *arguments]
    arguments = [a for a in with_bundled(["", *arguments]) if a[:8] in ("", "--config")]
    config_flags.DEFINE_config_file("config", sys_argv=arguments, flag_values=values)
    try:
        assert values(arguments)[1:] == []
        config = values["config"].value
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        pytest.fail(f"{where}: {error}")
    mode = dict(re.findall(r"--(mode)=(\w+)", where)).get("mode", "train")
    assert mode in cli.MODES and ("workdir" in given or mode == "plan"), where
    validation.validate(config, num_devices=1)
    evaluate_lib.check_evaluation(config)
    config_lib.sampling_settings(config)
    if mode == "sample":
        task_inputs.check(config.sample.to_dict())


def test_the_command_stands_under_every_picture():
    gallery = (ROOT / "README.md").read_text().split("## Gallery")[1].split("\n## ")[0]
    pictures = re.findall(r"!\[.+\]\(docs/images/(.+)\)\n\n(.*)\n```bash\npython", gallery)
    assert len(pictures) == gallery.count("![") >= 8
    shown = "".join(page.read_text() for page in PAGES)
    sizes = {path.name: path.stat().st_size for path in (ROOT / "docs/images").iterdir()}
    assert all(f"images/{name})" in shown for name in sizes)
    assert max(sizes.values()) < 200 * 1024 and sum(sizes.values()) < 1024**2


def test_the_table_of_benchmarks_has_every_program():
    page = (ROOT / "benchmarks/README.md").read_text()
    listed = {source_of(module) for module in re.findall(r"python -m (benchmarks\.[\w.]+)", page)}
    programs = [path for path in (ROOT / "benchmarks").rglob("*.py")
                if "\ndef main(" in path.read_text()]
    assert listed == {path.read_text() for path in programs}


def readme_rooms():
    """What each room of the README's table may import, in the order of the table."""
    page = (ROOT / "README.md").read_text().split("## The code")[1]
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", page, re.MULTILINE)
    rooms = {}
    for room, text in rows:
        named = set(re.findall(r"`(\w+)`", text))
        rooms[room] = set(rooms) - named if text.startswith("all above") else named
    return rooms


def test_the_table_of_rooms_is_the_one_that_is_held():
    rooms = readme_rooms()
    assert rooms.pop("cli") == set(rooms)
    aliases = {"schedule", "losses", "unet"}
    assert rooms == {
        room: allowed | ({"errors"} - {room})
        for room, allowed in may_import.ROOMS.items() if room not in aliases
    }


def test_rooms_stand_above_what_they_import():
    picture, = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = enumerate(picture.splitlines())
    floors = {room: -number for number, line in lines for room in line.split()}
    rooms = readme_rooms()
    assert set(floors) == set(rooms)
    for room, imported in rooms.items():
        assert all(floors[other] < floors[room] for other in imported), room


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_has_a_place_in_the_reference(room):
    page = (ROOT / f"docs/api/{room}.md").read_text()
    listed = re.findall(rf"^::: ddpm_jax\.{room}\.(\w+)$", page, re.MULTILINE)
    there = [path.stem for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"]
    assert sorted(listed) == sorted(there)


def test_moved_modules_are_where_the_changelog_says():
    page = (ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    assert len(rows) == 69 and [old for old, _ in rows] == sorted({old for old, _ in rows})
    for old, text in rows:
        assert resolves(f".{old}") == ("unchanged" in text or old in ROOMS), old
        for module in re.findall(r"`(\w+\.\w+)`", text):
            assert resolves(f".{module}"), module
        for names, module in re.findall(r"((?:`\w+`(?:, | and )?)+)[\w ]* in `([\w.]+)`", text):
            for name in re.findall(r"\w+", names.replace(" and ", " ")):
                assert resolves(f".{module}.{name}"), f"{module}.{name}"


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """The traceback of each page whose Python blocks fail."""
    return pages.run({
        page_id(page): "".join(
            code for language, code, reason in pages.blocks(page.read_text())
            if language == "python" and not reason
        ) for page in PAGES
    }, tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=page_id)
def test_python_blocks_run(page, errors):
    assert page_id(page) not in errors, errors[page_id(page)]


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason='pip install -e ".[docs]"')
def test_the_site_builds(tmp_path):
    """Without a warning: a broken link, a page out of the menu, a docstring that does not parse."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "sqrt_one_minus_alpha_bar" in (tmp_path / "site/api/diffusion/index.html").read_text()
