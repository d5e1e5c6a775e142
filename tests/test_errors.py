"""A user's mistake is one line, in the words of the function or of the config."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import errors
from ddpm_jax.errors import UserError

MISTAKE = dict(
    rule="cannot go with {variance}", field="loss", value="simple",
    given={"variance": "learned"}, instead={"loss": "hybrid", "variance": "fixed_large"},
)


def shown(error, context):
    with pytest.raises(UserError) as caught, context:
        raise error
    return str(caught.value)


def test_the_line_names_field_value_rule_and_what_to_write():
    assert str(UserError(**MISTAKE)) == (
        "loss='simple' cannot go with variance='learned'; write loss='hybrid' or "
        "variance='fixed_large'."
    )
    assert str(UserError("images are missing.")) == "images are missing."


def test_settings_are_named_as_flags():
    assert shown(UserError(**MISTAKE), errors.as_settings("diffusion")) == (
        "config.diffusion.loss='simple' cannot go with config.diffusion.variance='learned'; write "
        "--config.diffusion.loss=hybrid or --config.diffusion.variance=fixed_large."
    )


def test_a_field_may_be_a_setting_of_another_name_or_an_entry():
    error = UserError("is odd", field="height", value=7, instead={"height": (8,)})
    assert shown(error, errors.as_settings("model", height="data.image_size")) == (
        'config.data.image_size=7 is odd; write --config.data.image_size="(8,)".'
    )
    error = UserError("is too large.", field="beta[3]", value=2.0)
    assert shown(error, errors.as_settings("diffusion", beta="diffusion.betas")) == (
        "config.diffusion.betas[3]=2.0 is too large."
    )


def test_what_to_write_stands_where_the_rule_has_it():
    error = UserError("is odd; write {instead}, or resize.", field="height", value=7,
                      instead={"height": 8})
    assert str(error) == "height=7 is odd; write height=8, or resize."


def test_what_is_named_as_a_setting_stays_so():
    error = UserError("is odd.", field="config.data.image_size", value=7)
    assert shown(error, errors.as_settings("model")) == "config.data.image_size=7 is odd."
    inner = UserError("is odd.", field="height", value=7)
    with pytest.raises(UserError, match="^config.data.height=7 is odd.$"):
        with errors.as_settings("model"), errors.as_settings("data"):
            raise inner


def test_a_file_stands_first_and_stays():
    error = UserError("is odd.", field="height", value=7)
    assert shown(error, errors.located("a.bin")) == "a.bin: height=7 is odd."
    assert shown(error.located("a.bin"), errors.located("folder")) == "a.bin: height=7 is odd."
    assert shown(error.located("a.bin"), errors.as_settings("data")) == (
        "a.bin: config.data.height=7 is odd."
    )


def test_braces_of_a_value_stay():
    assert str(UserError("is no {x}.", field="a", value="{x}")) == "a='{x}' is no {x}."


def test_a_line_survives_pickling():
    for error in (UserError(**MISTAKE), UserError(**MISTAKE).renamed(lambda field: f"x.{field}")):
        copied = pickle.loads(pickle.dumps(error))
        assert type(copied) is UserError and str(copied) == str(error)


@pytest.mark.parametrize("value, whole", [
    (5, 5), (5.0, 5), (1e3, 1000), (-2.0, -2), (2**70, 2**70), (np.int8(5), 5),
    (np.uint64(2**63), 2**63), (np.float32(5), 5), (np.array(5), 5), (jnp.int32(5), 5),
    (jnp.float32(5), 5), (jnp.array(-7.0), -7),
])
def test_whole_numbers_become_ints(value, whole):
    number = errors.whole_number("n", value)
    assert type(number) is int and number == whole


@pytest.mark.parametrize("value", [
    1.5, float("nan"), float("inf"), True, np.True_, jnp.array(True), "5", b"5", None, 1j, [5],
    np.array([5]), jnp.array([5]), np.float32(1.5), jnp.float32(np.nan), jax.random.key(0),
])
def test_what_is_not_whole_is_refused_in_a_line(value):
    with pytest.raises(UserError, match=r"^n=.* must be a whole number; write n=\d\.$"):
        errors.whole_number("n", value)


def test_a_range_is_named_with_a_number_in_it():
    for value, ends, line in [
        (0, dict(low=1), "n=0 must be a whole number of at least 1; write n=1."),
        (9, dict(high=7), "n=9 must be a whole number of at most 7; write n=7."),
        (9, dict(low=1, high=7), "n=9 must be a whole number in 1..7; write n=7."),
        (2.6, dict(low=1, high=7), "n=2.6 must be a whole number in 1..7; write n=3."),
        (-3, dict(low=0), "n=-3 must be a whole number of at least 0; write n=0."),
        ("4", dict(low=1), "n='4' must be a whole number of at least 1; write n=4."),
    ]:
        with pytest.raises(UserError) as caught:
            errors.whole_number("n", value, **ends)
        assert str(caught.value) == line
    assert errors.whole_number("n", 7, low=7, high=7) == 7


def test_a_list_of_whole_numbers_names_the_entry():
    assert errors.whole_numbers("t", [1, 2.0, np.int64(3)]) == (1, 2, 3)
    assert errors.whole_numbers("t", (i for i in range(3))) == (0, 1, 2)
    assert errors.whole_numbers("t", jnp.arange(3)) == (0, 1, 2)
    assert errors.whole_numbers("t", []) == ()
    with pytest.raises(UserError, match=r"^t\[1\]=1.5 must be a whole number; write t\[1\]=2.$"):
        errors.whole_numbers("t", [1, 1.5])
    with pytest.raises(UserError, match=r"^t=5 must be a list of whole numbers; write t=\[5\].$"):
        errors.whole_numbers("t", 5)
    for value in ("12", None, {1: 2}, 1.5, np.ones((2, 2), int)):
        with pytest.raises(UserError, match="must be a list of whole numbers"):
            errors.whole_numbers("t", value)


def test_a_line_shows_no_more_of_a_value_than_a_line_holds():
    many = {f"layer.{i}": np.zeros((30, 30)) for i in range(100)}
    for value, start in [
        (many, "x={'layer.0': array"), ("a" * 10_000, "x='aaa"),
        (np.zeros((90, 90)), "x=<float64 [90, 90]> is odd."),
    ]:
        line = str(UserError("is odd.", field="x", value=value, given={"y": value}))
        assert line.startswith(start) and "\n" not in line and len(line) < 300


def test_pixels_in_0_to_255_are_told_from_floats_by_their_type():
    for array in (np.zeros(3), jnp.zeros(3, jnp.bfloat16), [1, 2], 0):
        errors.check_floats(x=array)
    for array in (np.zeros(3, np.uint8), jnp.zeros(3, jnp.int32), np.zeros(3, bool)):
        with pytest.raises(UserError, match=r"y=<.* must be float in .*data.to_float\(y\)"):
            errors.check_floats(x=np.zeros(3), y=array)


def test_a_field_alone_is_named_as_a_setting():
    error = UserError("is odd", field="batch_size", value=7, instead={"batch_size": 8})
    assert shown(error, errors.named_as(batch_size="sample.batch_size")) == (
        "config.sample.batch_size=7 is odd; write --config.sample.batch_size=8."
    )
    other = UserError("is odd.", field="n", value=7)
    assert shown(other, errors.named_as(batch_size="sample.batch_size")) == "n=7 is odd."


@pytest.mark.parametrize("value, read", [
    (2, 2), (0.5, 0.5), (np.float32(0.5), 0.5), (jnp.float32(0.5), 0.5), (np.array(2), 2),
])
def test_numbers_become_those_of_python(value, read):
    number = errors.number("eta", value)
    assert type(number) is type(read) and number == read


@pytest.mark.parametrize("value", [
    float("nan"), float("inf"), True, np.True_, "2", None, [1.0], 1j, 10**400, jax.random.key(0),
])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(UserError, match="^eta=.* must be a finite number, for example 0.5.$"):
        errors.number("eta", value)
    with pytest.raises(UserError, match=r"^eta\[1\]=.* must be a finite number"):
        errors.numbers("eta", (0, value))


def test_flags():
    for value in (True, 1, np.True_, jnp.array(True)):
        assert errors.flag("clip", value) is True
    assert errors.flag("clip", 0) is False
    for value in (2, "True", None, 0.5, [], np.ones(2)):
        with pytest.raises(UserError, match="^clip=.* must be True or False; write clip=True.$"):
            errors.flag("clip", value)


@pytest.mark.parametrize("parts", [
    {"rule": "x" * 10**6}, {"rule": "is odd.", "where": "a\nb" * 10**5},
    {"rule": "is odd", "instead": {"size": "y" * 10**6}},
])
def test_a_message_is_one_line_of_bounded_length(parts):
    line = str(UserError(**parts).located("file"))
    assert "\n" not in line and len(line) <= 2003
