"""The verdicts of the pilots, out of their run folders into the project, and from there into the README.

    rankwise compare plans/premise.yaml --profile pilot --output runs/premise
    python benchmarks/pilots.py runs/premise        # writes benchmarks/results/pilots/premise.json
    RANKWISE_UPDATE_DOCS=1 pytest tests/test_docs.py

The command is kept without its paths; everything else is `verdicts.json` as it was written.
"""

import argparse
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "pilots"


def main() -> None:
    """Copy the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="run folders of pilots")
    for folder in parser.parse_args().folders:
        content = json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))
        content["command"] = f"rankwise compare plans/{content['plan']}.yaml --profile {content['profile']}"
        path = RESULTS / f"{content['plan']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
