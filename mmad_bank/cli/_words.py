"""The words of the command line: every option of every command, with the one thing that it means.

A command takes its options from here by :func:`option`, so a name has one meaning and one type, whatever the command.
The singular of a name takes one value, the plural takes several that are joined by commas.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import typer

Axes = Literal["auto", "rows", "bchw", "bhwc"]
BankPrecision = Literal["auto", "float32", "half", "int8"]
ComputeDtype = Literal["float32", "bfloat16"]
Runtime = Literal["torch", "openvino"]
FolderLayout = Literal["auto", "mvtec3d", "eyecandies", "folder", "mvtec_ad", "visa", "real3d", "pictures"]
LengthUnit = Literal["m", "cm", "mm", "um"]
LogFormat = Literal["text", "json", "none"]
Measure = Literal["error", "auroc"]
Recipe = Literal["auto", "m3dm", "cfm", "mdss", "eyecandies", "keep"]
Reweighting = Literal["m3dm", "patchcore", "max", "top"]
SplitName = Literal["train", "validation", "test"]


class Word(NamedTuple):
    """An option.

    Attributes:
        kind: Type of its value, or of one of its values.
        help: Sentence of the help; a command fills in each ``{}`` what it says more exactly. Without square brackets,
            which the help takes for markup.
        metavar: Form of the value in the help, where the type does not say it.
        several: Whether it takes several values, joined by commas in a text, or as a list by repeating the option.
    """

    kind: Any
    help: str
    metavar: str | None = None
    several: bool = False


_NAMES = "A,B,..."

WORDS: dict[str, Word] = {
    # What is read.
    "--categories": Word(str, "Categories to take, joined by commas (default: {}).", _NAMES, several=True),
    "--split": Word(SplitName, "Split of the data set to take."),
    "--layout": Word(
        FolderLayout, "Layout of the data set's folders; pictures takes all pictures in a folder, however nested."
    ),
    "--roi": Word(
        Path, "Region of interest of all pictures: a picture that is not black inside, or a JSON file with the corners,"
        " x and y in pixels, of a polygon. The model keeps it; what lies outside is neither learned nor scored.",
    ),
    "--views": Word(
        str, "Pattern of the pictures' names where several show one part, such as {{part}}_{{view}}, {{part}}/{{view}}"
        " or {{part}}_C{{view}}_*: a verdict is of a part then{}.", "PATTERN",
    ),
    "--units": Word(LengthUnit, "Unit of the point clouds' files (default: {})."),
    "--key": Word(
        str, "Arrays to take from files that hold several, joined by commas; several layers are joined on the largest"
        " grid.", _NAMES, several=True,
    ),
    "--axes": Word(
        Axes, "Axes of the files' arrays: rows are (N, D) or (images, patches, D), bchw are maps of images × channels ×"
        " height × width, and bhwc have the channels last.",
    ),
    "--by-image": Word(bool, "Take every array of a file as one image, which is named by its key in the file."),
    "--patches": Word(int, "Number of patches per image in (N, D) files."),
    "--test": Word(
        Path, "Features of images that the bank is not built from, joined by commas.", "FEATURES,...", several=True
    ),
    "--anomalous": Word(
        Path, "Features of anomalous images, joined by commas; those of --test are normal then.", "FEATURES,...",
        several=True,
    ),
    "--labels": Word(
        Path, "Labels of the images of --test, 0 or 1: .npy, lines of text, or extraction.json as extract writes it"
        " (default: by the images' names, if all lie in folders and one of these is called good, ok or normal).",
    ),
    "--force": Word(bool, "Score data that were prepared otherwise, or that are of another category, too."),
    "--trust-index": Word(
        bool, "Let FAISS read the index in a file of your own; without this option it is built anew from the vectors."
    ),
    # What is written.
    "--out": Word(Path, "{} to write{}."),
    "--overwrite": Word(bool, "Replace output that exists; without this option it is refused."),
    "--in-place": Word(bool, "Replace BANK itself."),
    "--csv": Word(
        Path, "CSV file to write, with a line for each image (of parts of several, for each part): its score, its worst"
        " patch, and the normal patch nearest to that.",
    ),
    "--jsonl": Word(
        Path, "File to write, with a JSON object on a line for each image, or part of several: what score.json has."
    ),
    "--maps": Word(Path, "Folder to write, with each image's anomaly map as {}."),
    "--markdown": Word(Path, "Markdown file to write, with the tables."),
    "--plot": Word(Path, "Picture to write, with {}: .png, .svg or .pdf."),
    "--report": Word(Path, "Folder to write, with an HTML report: REPORT/index.html."),
    "--workdir": Word(Path, "Folder to keep {}."),
    "--json": Word(bool, "Print one JSON object and nothing else."),
    # Sizes and numbers.
    "--image-size": Word(int, "Side of {} images in pixels{}."),
    "--bank-size": Word(int, "Number of vectors {}."),
    "--at-most": Word(int, "Largest number of vectors to add."),
    "--train-images": Word(int, "Number of training images {}."),
    "--validation-images": Word(int, "Number of validation images {}."),
    "--test-images": Word(int, "Number of test images {}."),
    "--few-shot": Word(int, "Number of training images to draw and fit on, without validation."),
    "--batch": Word(int, "Number of images computed together; results do not depend on it."),
    "--batches": Word(
        str, "Numbers of images computed together to measure the throughput at, joined by commas.", "N,M,...",
        several=True,
    ),
    "--rounds": Word(int, "Number of timed images per method; the methods take turns."),
    "--top": Word(int, "Number of highest-scoring images to list."),
    "--explain": Word(int, "Number of normal patches to name for the worst patch of each bank."),
    "--grid": Word(int, "Number of patches along each side of an image."),
    "--workers": Word(int, "Number of processes (default: {})."),
    "--address": Word(
        str, "Address of the Ray cluster whose processes work, such as auto or HOST:6379 (default: this"
        " machine)."
    ),
    "--rows": Word(str, "Number of rows to select from, such as 1e9 (default: those of FEATURES).", "N"),
    "--dim": Word(int, "Length of a row (default: that of FEATURES)."),
    "--within": Word(str, "Time to be done in, such as 90s, 10m or 2h: tells how many workers are enough.", "TIME"),
    "--machines": Word(int, "Number of machines that the workers are on (default: one for each worker)."),
    "--spill": Word(bool, "Plan with the rows in scratch files of the workers, not in memory."),
    "--network": Word(float, "Gigabits per second between the program and all machines together."),
    "--disk": Word(str, "What a worker reads in a second, its part of a shared disk, such as 1GB.", "SIZE"),
    "--pace": Word(Path, "Pace of the workers' machine, a file of --save-pace (default: this one's, measured)."),
    "--save-pace": Word(Path, "JSON file for the pace of this machine, for plans that are made elsewhere."),
    "--scratch": Word(
        Path, "Folder where workers keep their rows in files, which are gone with them: for more features than memory"
        " holds (default: in memory)."
    ),
    "--threads": Word(int, "Number of threads of {}."),
    "--seed": Word(int, "Seed of {}."),
    # The bank and its search.
    "--ratio": Word(str, "Share of the rows to select, such as 0.1 or 10% (default: 10%).", "SHARE"),
    "--ratios": Word(
        str, "Shares of the rows to select in turn, joined by commas, such as 0.1%,10% (default: 0.1 to 100 %).",
        _NAMES, several=True,
    ),
    "--index": Word(str, "Search index: exact, or a FAISS index_factory string such as IVF256,Flat{}.", several=True),
    "--nprobe": Word(
        int, "Number of lists that a query of an IVF index looks into (default: enough to find 99 % on a sample)."
    ),
    "--ef-search": Word(
        int, "Number of candidates that the search of an HNSW index keeps (default: enough to find 99 % on a sample)."
    ),
    "--bank-precision": Word(
        BankPrecision, "Precision of the bank's search copy in memory; it changes memory and speed, not the answers{}."
    ),
    "--bank-precisions": Word(
        str, "Precisions of the bank's search copy to measure in turn, joined by commas.", _NAMES, several=True
    ),
    "--projection-dim": Word(str, "Dimensions of the random projection to select in (default: none).", "D|auto"),
    "--standardize": Word(bool, "Measure distances in units of the features' standard deviation."),
    "--start": Word(int, "Row that is selected first."),
    "--radius": Word(float, "Distance beyond which a row is added (default: the bank's covering radius)."),
    "--reweight": Word(Reweighting, "Rule that makes an image's score of its patches' (top: mean of the highest 1 %)."),
    "--neighbors": Word(int, "Number of bank vectors that the rule looks at (default: m3dm 3, patchcore 9)."),
    # Verdicts.
    "--false-alarm-rate": Word(
        str, "Share of the normal images that may be called bad, such as 0.01 or 1%{}.", "SHARE"
    ),
    "--fail-on-bad": Word(bool, "End with exit code 4 if an image, or a part of several, is bad."),
    "--calibrate": Word(
        Path, "Features of normal images to calibrate the extended bank with, joined by commas.", "FEATURES,...",
        several=True,
    ),
    "--false-warning-rate": Word(
        str, "Chance that drift is ever found where there is none, such as 0.01 or 1%.", "SHARE"
    ),
    "--bank": Word(Path, "Calibrated bank that has made the scores."),
    "--model": Word(Path, "Folder of the calibrated model that has made the scores."),
    "--normal": Word(
        Path, "File like SCORES with the scores of normal images, in place of a calibrated bank's."
    ),
    "--folds": Word(
        int, "Number of runs of neighboring images to leave out in turn, where FEATURES are what the bank was built"
        " from.",
    ),
    # Streams.
    "--factor": Word(
        float, "Proved factor between the bank's covering radius and the best possible one; one nearer to 2 takes more"
        " memory (default: 4)."
    ),
    "--poll": Word(str, "Time between two looks into the folder; a file that did not change in it is taken.", "TIME"),
    "--patience": Word(
        str, "Time after which a file that cannot be read and does not change is named and left out.", "TIME"
    ),
    "--save-every": Word(str, "Time after which the bank is written again, if it has changed.", "TIME"),
    "--until-idle": Word(
        str, "Time without anything new in the folder after which the command ends (default: none, it goes on until"
        " Ctrl-C or SIGTERM).", "TIME",
    ),
    # Methods and networks.
    "--per-category": Word(
        bool, "Train for each category by itself what all categories of a data set share otherwise: M3DM's fusion,"
        " LSFA's adaptors, the signed distances of MDSS and Shape-guided.",
    ),
    "--bundled": Word(bool, "Take small extractors that need no download: EfficientNet-Lite and FPFH."),
    "--runtime": Word(
        Runtime, "Library that runs the network of color images on a CPU; scores are the same but for rounding"
        " (default: the model's)."
    ),
    "--compute-dtype": Word(ComputeDtype, "Type in which the networks multiply."),
    "--device": Word(str, "Device to compute on: cpu, cuda or cuda:N."),
    "--methods": Word(str, "Methods to measure, joined by commas (default: all).", _NAMES,
                      several=True),
    "--recipe": Word(
        Recipe, "Preprocessing to do, by paper (auto: eyecandies for Eyecandies, keep for pictures without clouds,"
        " else m3dm; keep: backgrounds stay).",
    ),
    "--rgb": Word(str, "Extractor of color images: efficientnet_lite0, 1 or 2, any model's name in timm, or none."),
    "--rgb-weights": Word(str, "Weights of the extractor of color images: pretrained, random, or a checkpoint file."),
    "--xyz": Word(str, "Extractor of point clouds: fpfh, point_mae, point_bert, or none."),
    "--xyz-weights": Word(
        str, "Weights of point_mae or point_bert: its checkpoint file, or random; pretrained says where that file is,"
        " as no package brings it.",
    ),
    "--set": Word(
        str, "Set an argument of the method's constructor, such as ratio=10% or image-size=256; repeat the option for"
        " several.", "NAME=VALUE", several=True,
    ),
    # The service.
    "--host": Word(str, "Address to listen at; 0.0.0.0 is every network of the machine."),
    "--port": Word(int, "Port to listen at; 0 takes a free one."),
    "--api-key": Word(
        Path, "File with the keys of which clients must send one, a line each (default: the key in the environment"
        " variable MMAD_BANK_API_KEY, or none)."
    ),
    "--max-batch": Word(int, "Largest number of images that are scored together, and of images in a request."),
    "--batch-delay": Word(str, "Time that a request waits at most for others to be scored with.", "TIME"),
    "--max-body": Word(str, "Largest body of a request.", "SIZE"),
    "--max-queue": Word(
        int, "Largest number of requests for scores that are read, wait or are computed; more are answered with 503."
    ),
    "--timeout": Word(str, "Time after which a request is given up, or none.", "TIME"),
    "--concurrency": Word(int, "Number of models that are computed at the same time."),
    "--data": Word(
        Path, "Folder of the training images, a model's in a folder of its name or all together: the page shows the"
        " normal patches nearest to the worst one from there (default: it names them)."
    ),
    "--log": Word(LogFormat, "Form of the log on standard error: a line per request as text or JSON, or none."),
    # What is measured and said.
    "--memory": Word(str, "Largest memory that the {} may take, such as 200MB or 1.5GiB{}.", "SIZE"),
    "--fps": Word(float, "Frame rate to reach, in images per second."),
    "--budget": Word(str, "Time to measure in, such as 90s, 10m or 2h; none takes all that is needed.", "TIME"),
    "--timing": Word(str, "Time that each setting is timed for at least, such as 1s.", "TIME"),
    "--by": Word(Measure, "Measure by which the most accurate setting is recommended."),
    "--times-only": Word(bool, "Measure times alone; without this option each method's memory is measured too."),
    "--quick": Word(bool, "Take tiny networks and banks, to see whether it runs."),
    "--scale": Word(
        str, "Scores that the first and the last color stand for, joined by a comma (default: the model's).",
        "LOW,HIGH", several=True,
    ),
    "--verify": Word(bool, "Compare all data with their checksums."),
    "--system": Word(bool, "Say what this machine and this build can run."),
    "--weights": Word(bool, "Say which networks' weights are here, and which would be downloaded."),
    "--parameters": Word(str, "List the parameters of a method, which fit takes as --set NAME=VALUE.", "METHOD"),
}  # fmt: skip
"""Words of the options, by name as the shell has it."""


def option(name: str, *more: str, **settings: Any) -> Any:
    """Return an option for a parameter's annotation.

    Args:
        name: One of :data:`WORDS`.
        more: Words that the command says more exactly, for each ``{}`` in the sentence.
        settings: Settings of :func:`typer.Option`.

    Example:
        >>> option("--seed", "the random projection").help
        'Seed of the random projection.'
    """
    word = WORDS[name]
    return typer.Option(name, help=word.help.format(*more), metavar=word.metavar, **settings)
