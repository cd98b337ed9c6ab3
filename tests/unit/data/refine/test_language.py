"""Language identification keeps what was asked for."""

from __future__ import annotations

import pytest

from orchestrator.data.refine.clean import Cleaner
from orchestrator.data.refine.language import SAMPLE_CHARACTERS, LanguageFilter
from orchestrator.errors import JobError
from orchestrator.job_data import Clean, Languages

SAMPLES = {
    "en": "The ship left the harbour early in the morning, and nobody knew when it would come back to the island.",
    "de": "Das Schiff verließ den Hafen früh am Morgen, und niemand wusste, wann es auf die Insel zurückkehren würde.",
    "fr": "Le navire a quitté le port tôt le matin, et personne ne savait quand il reviendrait sur l'île.",
    "es": "El barco salió del puerto por la mañana temprano y nadie sabía cuándo volvería a la isla.",
    "ja": "船は朝早く港を出ました。いつ島に戻ってくるのか、誰も知りませんでした。",
    "el": "Το πλοίο έφυγε από το λιμάνι νωρίς το πρωί και κανείς δεν ήξερε πότε θα επιστρέψει στο νησί.",
}
ENGLISH = LanguageFilter(Languages(keep=["en"]))


@pytest.mark.parametrize("language", SAMPLES)
def test_each_language_is_kept_where_it_is_asked_for(language):
    assert LanguageFilter(Languages(keep=["sw", language])).keeps(SAMPLES[language])
    assert ENGLISH.keeps(SAMPLES[language]) is (language == "en")


def test_a_document_in_another_language_is_removed():
    cleaner = Cleaner(Clean(language=Languages(keep=["en"])))
    assert cleaner.clean(SAMPLES["en"]).rule is None
    assert cleaner.clean(SAMPLES["de"]).rule == "language"


def test_the_limit_itself_stays():
    best = ENGLISH.best(SAMPLES["en"])
    assert 0.5 < best < 1.0
    assert LanguageFilter(Languages(keep=["en"], min_probability=best)).keeps(SAMPLES["en"])
    assert not LanguageFilter(Languages(keep=["en"], min_probability=min(best + 1e-6, 0.9999))).keeps(SAMPLES["en"])


def test_a_probability_is_among_all_languages():
    # Only Danish is asked for: English does not become Danish for want of another choice.
    assert LanguageFilter(Languages(keep=["da"])).best(SAMPLES["en"]) < 0.1


def test_a_long_document_is_judged_by_its_middle():
    edge = (SAMPLES["de"] + " ") * 10
    middle = (SAMPLES["en"] + " ") * (SAMPLE_CHARACTERS // 100 + 2)
    assert ENGLISH.keeps(edge + middle + edge)
    assert not ENGLISH.keeps(middle[:900] + edge * 4 + middle[:900])


@pytest.mark.parametrize("text", ["1234 5678", "?!", "\ud800", "\U0001f600"])
def test_text_without_a_language_is_in_none(text):
    assert not ENGLISH.keeps(text)


def test_an_unknown_code_is_an_error():
    with pytest.raises(
        JobError, match=r"names english, xx, which .* does not know\n  fix: use codes out of .*, de, .*, en, "
    ):
        Cleaner(Clean(language=Languages(keep=["xx", "en", "english"])))
