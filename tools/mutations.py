"""Check that the tests catch a wrong formula: change one at a time and run the tests that should fail.

python tools/mutations.py

Works on a copy of the checkout; prints one line per formula and exits with 1 if a change was not caught.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# file, formula, a wrong formula, tests
MUTATIONS = [
    ("diffusion/samplers.py", "(1 - a_prev - sigma**2) ** 0.5 * eps", "(1 - a_prev) ** 0.5 * eps", "test_sampling.py"),
    ("diffusion/samplers.py", "a_prev**0.5 * beta / (1 - a) * x0", "a_prev**0.5 * beta * x0", "test_sampling.py"),
    ("diffusion/samplers.py", "(x0 - before) / (2 * r)", "(x0 - before) / r", "test_sampling.py"),
    ("diffusion/schedule.py", "(u + offset) / (1 + offset)", "u", "test_schedule.py"),
    ("diffusion/schedule.py", "return a / (1 - a)", "return a", "test_schedule.py test_sampling.py"),
    ("models/whitebox.py", "F.scaled_dot_product_attention(w, w, w)", "w", "models"),
    ("models/whitebox.py", "beta=eta, alpha=-eta", "beta=eta, alpha=eta", "models"),
    ("codecs/likelihood.py", "k * (rate + theta).log()", "k * rate.log()", "codecs/test_likelihood.py"),
    ("codecs/likelihood.py", "generator=generator) / shape", "generator=generator)", "codecs/test_likelihood.py"),
    ("codecs/gene.py", ".round().clamp(min=1)", ".round()", "codecs/test_gene.py"),
    ("preprocessing/normalise.py", "np.divide(target_sum, size", "np.divide(1.0, size", "test_preprocess.py"),
    ("metrics/joint.py", "- 2 * xy / (n * m)", "- xy / (n * m)", "metrics"),
    ("metrics/joint.py", "1 / (synthetic**2 + (1 - synthetic) ** 2)", "1 / synthetic.clip(0.01)", "metrics"),
    ("metrics/privacy.py", "np.maximum(radii(real, 1), 1e-12)", "1.0", "metrics"),
    ("metrics/privacy.py", "- np.log(n) - d * np.log(width)", "- np.log(n)", "metrics"),
    ("metrics/privacy.py", "_to_nearest(synthetic, known) < NEAR", "_to_nearest(synthetic, known) > NEAR", "metrics"),
    ("metrics/structure.py", "((r + 1 / r - 2) / 2)", "(r - 1)", "metrics"),
    ("metrics/structure.py", "2 * cdist(real, synthetic).mean()", "cdist(real, synthetic).mean()", "metrics"),
    ("metrics/structure.py", "return 1 - within / total", "return within / total", "metrics"),
    ("metrics/marginals.py", "(difference[:, :-1] * np.diff(values, axis=1))", "difference", "metrics"),
    ("evaluation/facts.py", "CONFIDENCE = ", "CONFIDENCE = 0 * ", "test_verdict.py"),
]


def caught(copy: Path, file: str, formula: str, wrong: str, tests: str) -> bool:
    path = copy / "scdiffkit" / file
    text = path.read_text(encoding="utf-8")
    if text.count(formula) != 1:
        raise SystemExit(f"{file}: {formula!r} is there {text.count(formula)} times: bring this list up to date.")
    path.write_text(text.replace(formula, wrong), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", *(f"tests/{test}" for test in tests.split())]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
    path.write_text(text, encoding="utf-8")
    return done.returncode == 1  # tests ran, and one failed


def main() -> int:
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__"))
        for file, formula, wrong, tests in MUTATIONS:
            found = caught(copy, file, formula, wrong, tests)
            missed += not found
            sys.stdout.write(f"{'caught' if found else 'MISSED'}  {file}: {formula} -> {wrong}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} caught\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
