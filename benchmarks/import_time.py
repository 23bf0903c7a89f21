"""How long `import art` takes beside importing the third-party modules that it needs anyway.

Fresh interpreters, alternating: one imports `art`, the other the very modules of other distributions that `import art`
loads, in the order in which it loads them. Each times its imports itself, so starting Python is left out; bytecode
is cached, as after an installation. What `art` and `art_core` cost is the difference. Beside the wall time stands the
processor time, which other programs on the machine disturb less.

    python benchmarks/import_time.py [--runs 15]

The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys

LOADED = """
import sys
before = set(sys.modules)
import art
ours = {"art", "art_core"}
new = [m for m in sys.modules if m not in before and not m.startswith("_sysconfigdata")]
print(*[m for m in new if m.partition(".")[0] not in ours | sys.stdlib_module_names])
"""
TIMED = """
import sys, time
names = sys.argv[1].split()
start, used = time.perf_counter(), time.process_time()
for name in names:
    __import__(name)
print(time.perf_counter() - start, time.process_time() - used)
"""


def output(code: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def measure(runs: int) -> dict[str, object]:
    """Time both, in turns."""
    modules = output(LOADED).split()
    programs = {"art": "art", "dependencies": " ".join(modules)}
    walls: dict[str, list[float]] = {name: [] for name in programs}
    cpus: dict[str, list[float]] = {name: [] for name in programs}
    for run in range(runs + 1):
        for name, imported in programs.items():
            wall_s, cpu_s = map(float, output(TIMED, imported).split())
            if run:  # the first of each only fills the caches
                walls[name].append(wall_s)
                cpus[name].append(cpu_s)
    medians = {name: statistics.median(taken) for name, taken in walls.items()}
    cpu = {name: statistics.median(taken) for name, taken in cpus.items()}
    return {
        "benchmark": "import_time",
        "runs": runs,
        "art_ms": round(1000 * medians["art"], 1),
        "dependencies_ms": round(1000 * medians["dependencies"], 1),
        "ratio": round(medians["art"] / medians["dependencies"], 3),
        "art_cpu_ms": round(1000 * cpu["art"], 1),
        "cpu_ratio": round(cpu["art"] / cpu["dependencies"], 3),
        "modules": len(modules),
        "distributions": sorted({module.partition(".")[0] for module in modules}),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    print(json.dumps(measure(parser.parse_args().runs)))


if __name__ == "__main__":
    main()
