"""All comparisons by name."""

from benchmarks import (
    contrast,
    evaluating,
    exporting,
    loading,
    localising,
    refinement,
    training,
)

ROWS = {
    "contrast": contrast.ROW,
    "training": training.ROW,
    "compile": training.COMPILED,
    "cams": localising.ROW,
    "pamr": refinement.ROW,
    "loading": loading.ROW,
    "evaluation": evaluating.ROW,
    "export": exporting.ROW,
}
