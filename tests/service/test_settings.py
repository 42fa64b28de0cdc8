import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import service
from models.catalog import ZOO
from service.settings import Settings


def test_defaults_serve_the_shipped_zoo_locally() -> None:
    settings = Settings()
    assert (settings.host, settings.port, settings.zoo) == ("127.0.0.1", 8000, (ZOO,))
    assert (settings.default_model, settings.default_purifier) == ("cifar10", None)


def test_environment_overrides_and_arguments_override_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPERTURB_PORT", "9000")
    monkeypatch.setenv("UNPERTURB_ZOO", os.pathsep.join(["/a", "/b c"]))
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001
    assert Settings().zoo == (Path("/a"), Path("/b c"))


@pytest.mark.parametrize(
    "wrong",
    [{"port": 70_000}, {"max_batch_size": 0}, {"device": "tpu"}, {"zoo": ()}, {"max_pixels": 2**40}, {"colour": "red"}],
)
def test_value_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Settings(**wrong)  # type: ignore[arg-type]


def test_batch_that_could_never_be_served_is_refused() -> None:
    with pytest.raises(ValidationError, match="queue_limit_images"):
        Settings(max_batch_images=10, queue_limit_images=9)


def test_body_that_could_never_be_received_is_refused() -> None:
    with pytest.raises(ValidationError, match="max_held_bytes"):
        Settings(max_body_bytes=10, max_held_bytes=9)


def test_lists_come_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPERTURB_FORMATS", "PNG, WEBP")
    monkeypatch.setenv("UNPERTURB_CORS_ORIGINS", "https://a.example,https://b.example,")
    assert Settings().formats == ("PNG", "WEBP")
    assert Settings().cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize("formats", ["GIF", ""])
def test_formats_that_are_not_read_are_refused(formats: str) -> None:
    with pytest.raises(ValidationError, match="formats"):
        Settings(formats=formats)  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_explained_and_read(name: str) -> None:
    sources = [path for path in Path(service.__file__).parent.glob("*.py") if path.name != "settings.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in sources) + "self.device"
    assert Settings.model_fields[name].description
    assert re.search(rf"settings\.{name}\b|self\.{name}\b", text)


def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert Settings().torch_device().type == "cuda"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Settings().torch_device().type == "cpu"
    assert str(Settings(device="cuda:1").torch_device()) == "cuda:1"
