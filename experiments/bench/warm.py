"""Import a script's libraries once, then run the script in a fork of this process for each line of standard input.

    python warm.py SCRIPT       each line of standard input is one run: its options, as a JSON list

The script is imported here for what it imports, and executed again in each fork. A run prints what the script prints,
followed by {"exit": CODE}.
"""

import json
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    script = sys.argv[1]
    sys.path.insert(0, str(Path(script).resolve().parent))  # as when the script is run directly
    runpy.run_path(script, run_name="imported")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            sys.argv = [script, *json.loads(line)]
            runpy.run_path(script, run_name="__main__")
            sys.exit()  # the child must not serve further runs
        _, status = os.waitpid(child, 0)
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
