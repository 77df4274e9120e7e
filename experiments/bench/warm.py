"""A side whose libraries are imported once: each run is a fork of this process.

    python warm.py SCRIPT       then a line of standard input for each run: its options, as a JSON list

The script is imported here for the sake of what it imports, and run anew in each fork. What a run prints is what the
script prints; after it comes {"exit": CODE}.
"""

import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    script = sys.argv[1]
    sys.path.insert(0, str(Path(script).resolve().parent))  # where it finds its neighbours, as when it is run
    runpy.run_path(script, run_name="imported")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            sys.argv = [script, *json.loads(line)]
            runpy.run_path(script, run_name="__main__")
            sys.exit()  # and not on, as a second server
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
