"""Settings: a typed object, clear errors, and the file generated from it."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mini_chat_gpt.common.errors import UserError
from mini_chat_gpt.config import PRESETS, Config, CurriculumStage, GPTConfig, ModelSection
from mini_chat_gpt.config_file import RENAMED_KEYS, descriptions, load_config, parse_config, to_yaml

ROOT = Path(__file__).parent.parent


def test_the_committed_yaml_is_the_one_generated_from_the_settings():
    assert (ROOT / "sft_config.yaml").read_text(encoding="utf-8") == to_yaml()


def test_the_committed_yaml_holds_the_defaults():
    assert load_config(ROOT / "sft_config.yaml") == Config()


def test_a_resolved_config_reads_back_as_itself(tmp_path):
    config = load_config(
        None, ["model.preset=15m", "model.n_layer=3", "sft.learning_rate=3e-4", "data.mixture={words: 2}"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


def test_documented_keys_have_their_documented_defaults():
    config = Config()
    assert (config.sft.learning_rate, config.sft.max_steps, config.sft.warmup_steps) == ("auto", "auto", "auto")
    assert (config.pretrain.learning_rate, config.pretrain.max_steps) == (1e-3, 10000)
    assert (config.sft.eval_interval, config.sft.save_interval, config.sft.dataset_path) == (500, 1000, "./TinyStories")
    assert config.sft.pretrained_checkpoint is None
    assert config.sft.resume_from is None
    assert (config.training.batch_size, config.training.weight_decay, config.data.seq_len) == (4, 0.01, 1024)


def test_overrides_win_over_the_file_and_numbers_may_be_written_as_2e_5(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  batch_size: 8\nsft:\n  learning_rate: 1e-3\n")
    config = load_config(path, ["training.batch_size=16", "sft.learning_rate=2e-5"])
    assert config.training.batch_size == 16
    assert config.sft.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sft.learning_rat=1", ["sft.learning_rat", "did you mean 'learning_rate'"]),
        ("trainng.batch_size=1", ["trainng", "did you mean 'training'"]),
        ("training.batch_size=many", ["training.batch_size must be a whole number, not 'many'"]),
        ("training.batch_size=0", ["training.batch_size must be at least 1, not 0"]),
        ("training.optimizer=sgd", ["training.optimizer", "adamw", "muon"]),
        ("model.preset=12m", ["preset '12m'", "did you mean '124m'"]),
        ("model.n_head=5", ["n_embd", "multiple of n_head"]),
        ("model.windows=[0, 4, null, 4, 4, 4]", ["model.windows.0 must be at least 1, not 0"]),
        ("batch_size", ["section.key=value"]),
        ("sft.learning_rate.x=1", ["sft.learning_rate"]),
        ("sft=3", ["sft must be a mapping of keys to values, not '3'"]),
        ("data.num_workers=many", ["data.num_workers must be a whole number or 'auto', not 'many'"]),
        ("system.compile=maybe", ["system.compile must be true or false or 'auto', not 'maybe'"]),
        ("chats.files=[x", ["chats.files, line 1: '[x' is not valid YAML"]),
        ("sft.max_steps=1:30", ["sft.max_steps must be a whole number or 'auto', not '1:30'"]),
        ("training.time_limit=1:30", ["'1:30' is not a duration"]),
        ("training.time_limit=1e999h", ["'1e999h' is not a duration"]),
        ("training.time_limit=" + "9" * 400 + "h", ["is not a duration; write for example 2h"]),
        ("lora.targets=[]", ["lora.targets must name at least one layer"]),
        ("model.rope_scaling={rope_type: yarn}", ["rope_type must be linear or llama3, not 'yarn'"]),
        ("model.rope_scaling={rope_type: linear}", ["factor is missing"]),
        ("model.rope_scaling={rope_type: linear, factor: 0}", ["factor must be at least 1, not 0"]),
        ("model.rope_scaling={rope_type: linear, factor: .nan}", ["factor must be a number, not '.nan'"]),
        (
            "model.rope_scaling={rope_type: llama3, factor: 8, original_max_position_embeddings: 512, "
            "low_freq_factor: 4, high_freq_factor: 4}",
            ["low_freq_factor must be less than high_freq_factor"],
        ),
    ],
)
def test_the_error_for_a_wrong_override_names_the_valid_ones(override, words):
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_the_settings_of_an_older_run_mean_what_they_meant(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("chats:\n  train: last\n")
    assert load_config(path).chats.too_long == "cut"
    assert load_config(path, of_run=True).chats.too_long == "shorten"
    assert load_config(path, ["chats.too_long=drop"], of_run=True).chats.too_long == "drop"
    path.write_text(to_yaml())
    assert load_config(path, of_run=True) == Config()


def test_an_error_names_all_problems_of_a_file(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("training:\n  batch_sise: 8\nsft:\n  max_steps: -1\n")
    with pytest.raises(UserError, match=r"bad\.yaml.*max_steps.*batch_sise|bad\.yaml.*batch_sise.*max_steps"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "words"), [("a: [1\n", "line 1"), ("- 1\n", "sections"), ("\xff\xfe", "read"), (None, "no config file")]
)
def test_the_error_for_an_invalid_file_names_it(tmp_path, content, words):
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=words):
        load_config(path)


@given(st.floats(min_value=1e-12, max_value=10, allow_nan=False))
def test_every_number_survives_being_written_and_read(value):
    assert load_config(None, [f"sft.learning_rate={value!r}"]).sft.learning_rate == value


def test_any_field_of_the_model_overrides_its_preset():
    config = ModelSection(preset="1m", n_embd=64).gpt_config(500)
    assert (config.n_embd, config.n_layer, config.vocab_size) == (64, PRESETS["1m"]["n_layer"], 500)
    assert isinstance(config, GPTConfig)


def test_every_setting_is_described():
    for section in [*map(type, Config().__dict__.values()), CurriculumStage]:
        assert section.__doc__
        assert descriptions(section).keys() == section.model_fields.keys()
    assert yaml.safe_load(to_yaml()).keys() == Config.model_fields.keys()


def test_curriculum_stages_survive_being_written_and_read():
    text = "data: {curriculum: [{share: 0.5, seq_len: 96, mixture: {quote: 4}}, {share: 0.2, turns: 2}]}"
    config = parse_config(yaml.safe_load(text), "the test")
    again = parse_config(yaml.safe_load(to_yaml(config)), "the test")
    assert again == config
    assert (again.data.curriculum[0].seq_len, again.data.curriculum[1].turns) == (96, 2)


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_an_old_name_of_a_setting_is_accepted_with_a_warning_that_names_the_new_one(old):
    section, *between, key = old.split(".")
    new = RENAMED_KEYS[old]
    field = {"mixture": {"moral": 2.0}, "loss_weights": {"moral": 2.0}, "best_metric": "x"}
    value = field.get(new, 2)
    given = {"curriculum": [{"share": 0.5, key: value}]} if between else {key: value}
    with pytest.warns(UserWarning, match=f"{re.escape(old)} is now {re.escape(old.removesuffix(key))}{new}"):
        config = parse_config({section: given}, "the test")
    place = getattr(config, section)
    assert getattr(place.curriculum[0] if between else place, new) == value


def test_an_old_and_a_new_name_together_are_an_error():
    with pytest.raises(UserError, match=r"data.focus is the old name of data.answer_weight; both are set"):
        load_config(None, ["data.focus=2", "data.answer_weight=3"])


def test_an_old_name_on_the_command_line_overrides_the_new_one_in_the_file(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: {answer_weight: 3, curriculum: [{share: 0.5, answer_weight: 1}]}", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"the command line: .*data.focus is now data.answer_weight"):
        assert load_config(file, ["data.focus=2"]).data.answer_weight == 2
    with pytest.warns(UserWarning, match=r"data.curriculum.focus is now data.curriculum.answer_weight"):
        assert load_config(file, ["data.curriculum=[{share: 0.1, focus: 5}]"]).data.curriculum[0].answer_weight == 5
    with pytest.warns(UserWarning, match=r"data.shares is now data.mixture"):
        assert load_config(file, ["data.shares.moral=2"]).data.mixture == {"moral": 2}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainig.batch_size=3", "the command line: trainig is not a setting"),
        ("training.batch_sise=3", "the command line: training.batch_sise is not a setting; did you mean 'batch_size'?"),
        (
            "learning_rate=1e-4",
            "learning_rate is not a setting; did you mean sft.learning_rate or pretrain.learning_rate?",
        ),
        ("training.save_dir=x", "training.save_dir is not a setting; did you mean sft.save_dir or pretrain.save_dir?"),
        ("lerning_rate=3", "lerning_rate is not a setting; did you mean sft.learning_rate or pretrain.learning_rate?"),
        ("lora.seed=3", "lora.seed is not a setting; did you mean system.seed?"),
        ("sft.nothing=3", "sft.nothing is not a setting (known here: learning_rate, "),
        ("model.n_head=7", "the command line: model: n_embd"),
        ("sft.eval_tasks=1", "FILE: line 1: data.limit must be at least 1, not 0"),
    ],
)
def test_a_mistake_is_reported_where_it_was_made(override, message, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("data: {limit: 0}" if message.startswith("FILE") else "data: {limit: 5}", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message.replace("FILE", str(file)))):
        load_config(file, [override])


def test_an_old_name_of_a_metric_is_accepted_with_a_warning_that_names_the_new_one():
    with pytest.warns(UserWarning, match=r"sft.best_metric=suite/moral/exact is now eval/moral/exact"):
        config = load_config(None, ["sft.best_metric=suite/moral/exact"])
    assert config.sft.best_metric == "eval/moral/exact"
    with pytest.warns(UserWarning, match=r"sft.best_by is now sft.best_metric, sft.best_metric=suite/x is now eval/x"):
        assert load_config(None, ["sft.best_by=suite/x"]).sft.best_metric == "eval/x"
