"""The command line: text in and out of it whatever the locale, and how a command ends."""

import argparse
import contextlib
import math
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ldm_jax.primitives.choices import did_you_mean

STOPPED = 130  # as shells say it of Ctrl-C


def print_anything() -> None:
    """Makes printing never fail: what the terminal's encoding lacks is printed as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def as_typed(value: Any) -> Any:
    """A text (or a list of them) of the command line as it was typed: UTF-8, also where the locale has no such letters.
    Names of files stay as the operating system gave them."""
    if isinstance(value, (list, tuple)):
        return [as_typed(each) for each in value]
    if not isinstance(value, str) or value.isascii() or os.path.exists(value):
        return value
    return os.fsencode(value).decode("utf-8", "replace")


def with_home(arguments: Sequence[str]) -> list[str]:
    """A command line with the home directory in the place of `~` in --flag=~/folder, where shells leave it as it is."""

    def written_out(argument: str) -> str:
        flag, equals, value = argument.partition("=")
        is_path = flag.startswith("-") and re.match(r"~[\w.-]*(/|$)", value)
        return f"{flag}={os.path.expanduser(value)}" if is_path and not os.path.exists(value) else argument

    return [written_out(argument) for argument in arguments]


def flag_error(error: Exception) -> str:
    """What absl or Python say of a flag that can't be read, in one line and in plain words."""
    said = " ".join(str(error).split())
    said = re.sub(r"invalid literal for int\(\) with base \d+: (.*)", r"\1 is no whole number", said)
    said = re.sub(r"\('Non-boolean argument to boolean flag', (.*)\)", r"\1 is neither true nor false", said)
    return re.sub(r"could not convert string to float: (.*)", r"\1 is no number", said)


def check_filled(flag: Any, names: Iterable[str]) -> None:
    """ValueError for a flag of absl that was given with nothing behind it, such as a variable of the shell that is not set."""
    for name in names:
        value = flag[name].value
        if flag[name].present and not (value and all(each.strip() for each in ([value] if isinstance(value, str) else value))):
            raise ValueError(f"--{name}= is empty: give a value, or leave --{name} out")


def check_positive(**numbers: float | None) -> None:
    """ValueError that names the flag of a number that is given and not above 0, or not finite."""
    for name, number in numbers.items():
        if number is not None and not 0 < number < math.inf:
            flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag}={number}: must be a number above 0")


def quiet() -> None:
    """Before jax is imported by a command: XLA's alarms about slow compiling and the like stay silent, unless
    TF_CPP_MIN_LOG_LEVEL is set. What fails is raised all the same."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line that says what is near; subcommands' too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """`~` is the home directory in --flag=~/folder too, and nothing behind a flag is refused."""
        self._given = given = with_home(sys.argv[1:] if args is None else args)
        for before, argument in zip(["", *given], given):
            if not argument.strip() or re.fullmatch(r"--?[A-Za-z][\w-]*=\s*", argument):
                name = argument.split("=")[0] if argument.strip() else before.split("=")[0]
                out = f", or leave {name} out" if name.startswith("-") else ""
                self.error(f"{name if out else 'an argument'} is empty: give a value{out}")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2."""
        near, known = "", self._option_string_actions
        names = [each.split("=")[0] for each in self._given if each.startswith("--")]
        unknown = [name for name in names if not any(each.startswith(name) for each in known)]
        if "required" in message and unknown and not self._subparsers:  # mistyped, it is what is missing
            message = f"unrecognized arguments: {unknown[0]}"
        if match := re.match(r"unrecognized arguments: (--?[\w-]+)", message):
            near = did_you_mean(match[1], known)
        self.exit(2, f"{self.prog}: {' '.join(message.split())}.{near} --help shows all flags\n")


def called(otherwise: str) -> str:
    """What this process was started as: "train.py", "ldm-train"; `otherwise` where it is neither."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("ldm-") or (name.endswith(".py") and name != "__main__.py") else otherwise


def as_typed_again() -> str:
    """The command line of this process, to be pasted."""
    first = Path(sys.argv[0])
    called = ["python", sys.argv[0]] if first.suffix == ".py" else [first.name]
    return shlex.join([*called, *sys.argv[1:]])


def stop_on_sigterm() -> None:
    """SIGTERM is Ctrl-C from now on: a KeyboardInterrupt in the main thread. Who handles either himself, still does.

    Where Python can't raise (in a destructor, in a callback of the garbage collector) it drops the exception; it is then raised
    again a moment later.
    """

    def stop(number: int, frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise KeyboardInterrupt

    def dropped(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return shown(unraisable)
        signal.signal(signal.SIGTERM, stop)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()

    shown = sys.unraisablehook
    with contextlib.suppress(ValueError):  # not the main thread
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, stop)
            sys.unraisablehook = dropped


@contextlib.contextmanager
def ends_in_one_line() -> Iterator[None]:
    """A command: what can't work ends in one line on standard error and status 1, Ctrl-C and SIGTERM in one and STOPPED. With
    LDM_TRACEBACK set, a traceback."""
    stop_on_sigterm()
    try:
        yield
    except (ValueError, OSError, KeyboardInterrupt) as error:
        if os.environ.get("LDM_TRACEBACK"):
            raise
        if isinstance(error, KeyboardInterrupt):
            print("stopped", file=sys.stderr)
            sys.exit(STOPPED)
        sys.exit(f"{type(error).__name__}: {error}")
