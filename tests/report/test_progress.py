"""Messages beside progress bars: on a line of their own, once, and never lost."""

import re
import subprocess
import sys

SCRIPT = """
import logging, sys
from tqdm import tqdm
from dppa_mergekit.report.progress import write_logs_around_bars

if sys.argv[1] == "set up":
    logging.basicConfig(format="%(levelname)s %(message)s")
write_logs_around_bars()
write_logs_around_bars()
with tqdm(total=3, desc="bar", mininterval=0) as bar:
    bar.update()
    logging.getLogger("dppa_mergekit.wing.module").warning("halfway")
    logging.getLogger("dppa_mergekit.wing.module").info("not said")
    bar.update()
"""


def lines(setting: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, setting]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return [line.strip() for line in re.split(r"[\r\n]", done.stderr)]


def test_a_message_is_printed_once_and_apart_from_the_bar() -> None:
    found = lines("set up")
    assert found.count("WARNING halfway") == 1
    assert [line for line in found if line.startswith("bar:  67%")]
    assert not [line for line in found if "halfway" in line and line != "WARNING halfway"]


def test_without_logging_set_up_python_still_prints_it() -> None:
    found = lines("as it is")
    assert found.count("halfway") == 1
    assert "not said" not in found
