"""Random labels become classes in the order of their values, from Python and from a file alike.

`DDPM_JAX_FUZZ=1000` draws 1,000 new ones.
"""


import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from ddpm_jax.data import kept as kept_lib
from ddpm_jax.data import labels as labels_lib
from ddpm_jax.data import loading
from ddpm_jax.data.source import from_array
from data_sets import refused
from fuzz import settings

WHOLE = st.one_of(st.integers(-3, 12), st.integers(-2**63, 2**63 - 1), st.integers(0, 2_000_000))
TEXT = st.text(st.characters(exclude_categories=(), exclude_characters="\0"), max_size=8)
LABELS = st.one_of(st.lists(kind, min_size=1, max_size=12) for kind in (WHOLE, TEXT))
FORMS = {
    "list": list, "array": np.array, "column": lambda x: np.array(x)[:, None],
    "objects": lambda x: np.array(x, object), "column of lists": lambda x: [[v] for v in x],
    "one-hot": lambda x: np.equal(np.array(x)[:, None], np.unique(x)),
    "one-hot numbers": lambda x: np.float32(np.equal(np.array(x)[:, None], np.unique(x))),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(tmp_path_factory.mktemp("labels") / "x.npz")


def images(n):
    return np.zeros((n, 2, 2, 1), np.uint8)


@settings(100)
@hypothesis.given(labels=LABELS, form=st.sampled_from(sorted(FORMS)))
def test_labels_are_classes_in_the_order_of_their_values(path, labels, form):
    order = sorted(set(labels))
    wanted = [order.index(label) for label in labels]
    given = FORMS[form](labels)
    hypothesis.assume(len(order) > 1 or not form.startswith("one-hot"))  # A column is not one-hot.
    sources = [from_array(images(len(labels)), labels=given)]
    if np.asarray(given).dtype != object:
        np.savez(path, train=images(len(labels)), train_labels=given)
        sources.append(loading.load("npz", data_dir=path, labels=True))
    for source in sources:
        assert source.labels.tolist() == wanted
        assert list(source.classes) == (
            list(range(len(order))) if form.startswith("one-hot") else order)
        line = labels_lib.line(source.classes, source.class_counts)
        assert line.isprintable() and len(line) < 1000


@settings(100)
@hypothesis.given(labels=LABELS, later=LABELS)
def test_a_run_keeps_the_classes_with_which_it_began(labels, later):
    began = from_array(images(len(labels)), labels=labels)
    source = from_array(images(len(later)), labels=later)
    known = kept_lib.of(began, None, 0)

    def part():
        return loading.part_of(source, "train", holdout=0, seed=0, num_classes=0, kept=known)

    if set(later) <= set(labels):
        assert [began.classes[label] for label in part().labels] == later
    else:
        refused(part, f"which is none of the {len(set(labels))} classes")
