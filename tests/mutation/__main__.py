"""Change the losses, the CAMs and the scoring in 400 places; which changes do tests notice?

  python tests/mutation FOLDER

copies HEAD to FOLDER, draws mutants, runs mutmut on one core and prints a table of files and a line
for each survivor (docs/reliability.md). Run again, it goes on with mutants without a result.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

NUM_MUTANTS = 400
NOTICED = (1, 3, 24, -24, 36, 152, 255)  # mutmut's exit codes: a test failed; it ran too long
HERE = Path(__file__).parent
MUTMUT = Path(sys.executable).with_name("mutmut")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="outside of the checkout; new, or of a past run")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    args = parser.parse_args()
    if not args.folder.exists():
        args.folder.mkdir(parents=True)
        head = subprocess.check_output(["git", "archive", "HEAD"], cwd=HERE.parents[1])
        subprocess.run(["tar", "-x"], cwd=args.folder, input=head, check=True)
        shutil.copy(HERE / "setup.cfg", args.folder)
    os.chdir(args.folder)
    mutants = all_mutants()
    drawn = random.Random(args.seed).sample(sorted(mutants), NUM_MUTANTS)
    print(f"{NUM_MUTANTS} of {len(mutants)} mutants, drawn with seed {args.seed}", flush=True)
    if todo := [name for name in drawn if exit_codes().get(name) is None]:
        one_core = os.environ | {"OMP_NUM_THREADS": "1"}
        command = ["nice", "-n", "15", MUTMUT, "run", "--max-children", "1", *todo]
        subprocess.run(command, env=one_core, stdout=subprocess.DEVNULL, check=True)
    codes, counts = exit_codes(), Counter()
    for name in drawn:
        file, change = mutants[name]
        counts[file, noticed := codes[name] in NOTICED] += 1
        if not noticed:
            print(f"{file}:{change}")
    for file in sorted({file for file, _ in counts}):
        print(f"| {file} | {counts[file, True]} | {counts[file, False]} |")
    killed = sum(counts[pair] for pair in counts if pair[1])
    print(f"{killed} of {len(drawn)} killed, {100 * killed / len(drawn):.1f} %")


def all_mutants() -> dict[str, tuple[str, str]]:
    """Return the name of each mutant with its file and change, but for those of an error alone."""
    from mutmut.mutation.file_mutation import mutate_file_contents  # reads setup.cfg when imported
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import get_mutant_name

    mutants = {}
    for path in walk_mutatable_files():
        source = path.read_text(encoding="utf-8")
        mutated = mutate_file_contents(str(path), source)
        nodes, lines = ast.walk(ast.parse(mutated.code)), mutated.code.splitlines()
        functions = {n.name: n for n in nodes if isinstance(n, ast.FunctionDef)}
        for name in mutated.mutant_names:
            orig, mutant = functions[name.rpartition("_")[0] + "_orig"], functions[name]
            if without_errors(orig) != without_errors(mutant):
                texts = [lines[n.lineno - 1 : n.end_lineno] for n in (orig, mutant)]
                mutants[get_mutant_name(path, name)] = (str(path), difference(source, *texts))
    return mutants


def without_errors(function: ast.FunctionDef) -> str:
    """Return a function as text without its name and what its raise statements say."""
    copy = ast.parse(ast.unparse(function).replace(function.name, "f"))
    for node in ast.walk(copy):
        vars(node).pop("exc", None)  # of raise
    return ast.dump(copy)


def difference(source: str, before: list[str], after: list[str]) -> str:
    """Return the number of the first line that differs and both versions of it."""
    line_of_def = source[: source.index("\n".join(before[1:]))].count("\n")
    before[0], after[0] = (text[0].partition("(")[2] for text in (before, after))
    pairs = enumerate(zip(before, after, strict=False))
    i, (old, new) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f"{line_of_def + i}: {old.strip()}  ->  {new.strip()}"


def exit_codes() -> dict[str, int | None]:
    files = [json.loads(path.read_text()) for path in Path("mutants").rglob("*.meta")]
    return {name: code for file in files for name, code in file["exit_code_by_key"].items()}


if __name__ == "__main__":
    main()
