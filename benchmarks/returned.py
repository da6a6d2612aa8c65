"""The row that shows what page faults cost, from a process whose freed memory goes to the system.

Run as a program, it measures in such a process; `rows` starts it, and reads what it prints.
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace

from benchmarks import dropout
from benchmarks.measure import Row, measure

WITHOUT = ", memory returned to the system"
NOT_COMPILED = "this row is for ours and eager torch"


def rows() -> list[Row]:
    command = [sys.executable, "-m", "benchmarks.returned"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [Row(**row) for row in json.loads(printed)]


if __name__ == "__main__":
    large = dropout.large()
    case = replace(large, name=large.name + WITHOUT, family=large.family + WITHOUT)
    print(json.dumps([asdict(measure(case, mode, None, NOT_COMPILED)) for mode in case.modes]))
