"""Score an image in this process, and print what memory that took: ``python -m mmad_bank.bench FOLDER DEVICE``."""

import json
import sys

from mmad_bank.bench import score_once

if __name__ == "__main__":
    print(json.dumps(score_once(sys.argv[1], sys.argv[2])))
