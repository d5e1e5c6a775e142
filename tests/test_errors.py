"""A user's mistake is one line, in the words of the function or of the config."""

import pickle

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
