"""Each metric against calculations by hand, or the library whose formula it is."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.data.messages import Question
from trainer.errors import EvaluationError
from trainer.evaluation.metrics import METRICS, Case, find_metrics
from trainer.evaluation.scoring import check_scorable, row_values, score_rows

# attributes to advert text, as in advertisegen, but written for this test
ADVERTS = [
    ("这款连衣裙采用宽松的版型，穿着非常舒适。", "这款连衣裙宽松的版型设计，让你穿着更加舒适自在。"),
    ("裤子是牛仔面料的，颜色很好看。", "牛仔面料的裤子，经典的蓝色十分好看。"),
    ("简约的上衣。", "简约大气的上衣，搭配V领更显气质。"),
]
ENGLISH = [
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("A cheap French restaurant near the river", "There is a cheap French restaurant by the river."),
    ("completely wrong", "The Eagle serves Chinese food."),
]


def value(name: str, pairs: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]] | None = None) -> float:
    cases = [Case(answer, reference, rows[i] if rows else {}) for i, (answer, reference) in enumerate(pairs)]
    return score_rows(METRICS[name], cases)[0].value


def per_row(name: str, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    metric = METRICS[name]
    return row_values(metric, metric.statistics([Case(answer, reference) for answer, reference in pairs]))


def test_exact_match_forgives_white_space_around_and_nothing_else() -> None:
    assert value("exact_match", [(" a b\n", "a b"), ("a  b", "a b"), ("A b", "a b"), ("", "a")]) == 0.25


def test_json_valid_takes_one_value_and_nothing_else() -> None:
    good = ['{"a": 1}', " [1, 2]\n", '"x"', "12"]
    bad = ["", '{"a": 1} and more', "{'a': 1}", "NaN", "[Infinity]", "[" * 100_000, "```json\n{}\n```"]
    assert per_row("json_valid", [(text, "") for text in good]) == [1.0] * 4
    assert per_row("json_valid", [(text, "") for text in bad]) == [0.0] * 7


def _slots(intent: str, **slots: Any) -> str:
    return json.dumps({"intent": intent, "slots": slots})


def test_slot_f1_is_micro_f1_of_intent_name_and_value() -> None:
    pairs = [
        (_slots("Play", artist="Adele", year="2011"), _slots("Play", artist="adele", year="2012")),  # 1 of 2, of 2
        (_slots("Rate", artist="Adele"), _slots("Play", artist="Adele")),  # another intent: 0 of 1, of 1
        ("no JSON", _slots("Play", city="Rome")),  # 0 of 0, of 1
        (_slots("Play"), _slots("Play")),  # nothing to find
        (_slots("Play", artist=["a", "b"]), _slots("Play", artist=["b", "c"])),  # 1 of 2, of 2
    ]
    assert value("slot_f1", pairs) == pytest.approx(2 * (1 + 1) / (5 + 6))
    assert per_row("slot_f1", pairs) == [None] * 5  # it has no meaning for one row


@pytest.mark.parametrize("answer", ["[]", "12", '{"slots": []}', '{"intent": "x"}', "null"])
def test_slot_f1_of_other_json_finds_nothing(answer: str) -> None:
    assert value("slot_f1", [(answer, _slots("Play", city="Rome"))]) == 0.0


def test_triple_f1_is_the_mean_of_set_f1_over_lines_of_three_fields() -> None:
    pairs = [
        ("泵_部件故障_漏油\n阀_部件故障_卡滞", "泵_部件故障_漏油"),  # p 1/2, r 1: F1 2/3
        ("泵_部件故障_漏油\n泵_部件故障_漏油", "泵_部件故障_漏油"),  # a set: 1
        ("泵_漏油\na_b_c_d\n", "泵_部件故障_漏油"),  # no triple: 0
        ("泵_部件故障_松动", "泵_部件故障_漏油"),  # 0
    ]
    assert per_row("triple_f1", pairs) == pytest.approx([2 / 3, 1.0, 0.0, 0.0])
    assert value("triple_f1", pairs) == pytest.approx((2 / 3 + 1) / 4)


def test_label_accuracy_reads_a_label_as_a_person_would() -> None:
    right = [("Card_Arrival.", "card arrival"), (' "joy"', "joy"), ("lost-or-stolen card", "lost_or_stolen_card")]
    wrong = [("card arrival estimate", "card arrival"), ("", "joy")]
    assert per_row("label_accuracy", right + wrong) == [1.0, 1.0, 1.0, 0.0, 0.0]


def test_entity_f1_is_micro_f1_of_type_and_text() -> None:
    pairs = [
        ('{"person": ["Ada", "Bob"]}', '{"person": ["Ada"], "place": ["Rome"]}'),  # 1 of 2, of 2
        ('{"place": ["Ada"]}', '{"person": ["Ada"]}'),  # 0 of 1, of 1
        ("{}", "{}"),
        ("[1]", '{"person": ["Eve", "Eve"]}'),  # 0 of 0, of 2
    ]
    assert value("entity_f1", pairs) == pytest.approx(2 * 1 / (3 + 5))


def test_sql_exact_forgives_spacing_case_marks_and_a_semicolon_but_not_literals() -> None:
    gold = "[SQL] SELECT name FROM city WHERE state = 'Texas' AND pop>5 [/SQL]"
    right = [
        "select  name from City where state='Texas' and pop > 5;",
        "```sql\nSELECT name\nFROM city WHERE state = 'Texas' AND pop > 5\n```",
    ]
    wrong = ["SELECT name FROM city WHERE state = 'texas' AND pop > 5", "SELECT names FROM city", ""]
    assert per_row("sql_exact", [(text, gold) for text in right + wrong]) == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "geo #1.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            "CREATE TABLE city (name TEXT, state TEXT, pop INTEGER);"
            "INSERT INTO city VALUES ('Austin', 'Texas', 2), ('Dallas', 'Texas', 3), ('Salem', 'Oregon', 1);"
        )
        connection.commit()
    return path


def executed(database: Path, pairs: Sequence[tuple[str, str]]) -> list[float | None]:
    metric = METRICS["sql_execution"]
    cases = [Case(answer, reference, {"sqlite": str(database)}) for answer, reference in pairs]
    return row_values(metric, metric.statistics(cases))


def test_sql_execution_compares_results_in_order_only_where_the_reference_orders(database: Path) -> None:
    texans, ordered = "SELECT name FROM city WHERE state = 'Texas'", "SELECT name FROM city ORDER BY pop"
    pairs = [
        ("SELECT name FROM city WHERE pop > 1 ORDER BY pop DESC", texans),  # another order is as good here
        ("SELECT name FROM city WHERE state = 'Texas' UNION ALL SELECT 'Austin'", texans),  # one row too many
        ("SELECT name FROM city ORDER BY pop ASC", ordered),
        ("SELECT name FROM city ORDER BY name DESC", ordered),
        ("SELECT name FROM (SELECT name FROM city ORDER BY pop)", "SELECT name FROM (SELECT * FROM city ORDER BY pop)"),
        ("SELECT count(*) FROM city", "SELECT 3.0"),
        ("this is no SQL", texans),
        ("", texans),
        ("-- nothing", "SELECT name FROM city WHERE pop > 9"),  # which gives no row either
        ("SELECT name FROM city WHERE pop > 8", "SELECT name FROM city WHERE pop > 9"),
    ]
    assert executed(database, pairs) == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


def test_sql_execution_leaves_out_and_counts_references_that_do_not_run(database: Path) -> None:
    row = {"sqlite": str(database)}
    cases = [Case("SELECT 1", "SELECT nothing FROM nowhere", row), Case("SELECT 1", "SELECT 1", row)]
    score, statistics = score_rows(METRICS["sql_execution"], cases)
    assert (score.value, score.count) == (1.0, 1)
    assert score.note == "1 row left out: the reference query itself does not run"
    assert row_values(METRICS["sql_execution"], statistics) == [None, 1.0]


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM city",
        "DROP TABLE city",
        "INSERT INTO city VALUES ('x', 'y', 1)",
        "ATTACH DATABASE '{folder}/other.sqlite' AS other",
        "VACUUM INTO '{folder}/other.sqlite'",
        "PRAGMA journal_mode = DELETE",
        "SELECT 1; DROP TABLE city",
        "SELECT load_extension('x')",
        "SELECT zeroblob(2000000)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",  # too many rows
    ],
)
def test_an_answer_can_neither_write_nor_attach_nor_fill_memory(database: Path, query: str) -> None:
    before = database.read_bytes()
    assert executed(database, [(query.replace("{folder}", str(database.parent)), "SELECT 1")]) == [0.0]
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]


def test_a_query_that_runs_on_is_stopped(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.evaluation.metrics.sql.SECONDS", 0.2)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    assert executed(database, [(endless, "SELECT 1")]) == [0.0]


def test_sql_execution_without_its_database_says_so(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="column 'sqlite'"):
        value("sql_execution", [("SELECT 1", "SELECT 1")])
    with pytest.raises(EvaluationError, match=r"there is no SQLite file .*gone\.sqlite"):
        value("sql_execution", [("SELECT 1", "SELECT 1")], [{"sqlite": str(tmp_path / "gone.sqlite")}])


@pytest.mark.parametrize(("pairs", "tokenize"), [(ADVERTS, "zh"), (ENGLISH, "13a")])
def test_bleu4_is_sacrebleu_s(pairs: list[tuple[str, str]], tokenize: str) -> None:
    from sacrebleu.metrics.bleu import BLEU

    answers, references = [answer for answer, _ in pairs], [reference for _, reference in pairs]
    expected = BLEU(tokenize=tokenize).corpus_score(answers, [references]).score
    assert 0 < expected < 100
    assert value("bleu4", pairs) == pytest.approx(expected)


@pytest.mark.parametrize("pairs", [ADVERTS, ENGLISH, [("", "abc"), ("abc", "abc")]])
def test_chrf_is_sacrebleu_s(pairs: list[tuple[str, str]]) -> None:
    from sacrebleu.metrics.chrf import CHRF

    answers, references = [answer for answer, _ in pairs], [reference for _, reference in pairs]
    assert value("chrf", pairs) == pytest.approx(CHRF().corpus_score(answers, [references]).score)
    alone = [CHRF().sentence_score(answer, [reference]).score for answer, reference in pairs]
    assert per_row("chrf", pairs) == pytest.approx(alone)


def test_of_several_references_the_best_counts() -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    answers = [answer for answer, _ in ENGLISH[:2]]
    references = [[reference, "The cat sat by the river."] for _, reference in ENGLISH[:2]]
    columns = [list(column) for column in zip(*references, strict=True)]
    pairs = [(answer, texts[0]) for answer, texts in zip(answers, references, strict=True)]
    rows = [{"references": texts} for texts in references]
    assert value("bleu4", pairs, rows) == pytest.approx(BLEU().corpus_score(answers, columns).score)
    assert value("chrf", pairs, rows) == pytest.approx(CHRF().corpus_score(answers, columns).score)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    best = [
        max(scorer.score(text, answer)["rougeL"].fmeasure for text in texts)
        for answer, texts in zip(answers, references, strict=True)
    ]
    assert value("rougeL", pairs, rows) == pytest.approx(100 * np.mean(best))


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_score_s(kind: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], use_stemmer=True)
    expected = [100 * scorer.score(reference, answer)[kind].fmeasure for answer, reference in ENGLISH]
    assert per_row(kind, ENGLISH) == pytest.approx(expected)
    assert value(kind, ENGLISH) == pytest.approx(np.mean(expected))


def test_rouge_of_chinese_counts_characters() -> None:
    pairs = [("简约的上衣V领。", "简约上衣，V领大气。")]  # 简约上衣v领 of 7 and 8 tokens
    assert per_row("rouge1", pairs) == pytest.approx([100 * 2 * 6 / (7 + 8)])
    assert per_row("rouge2", pairs) == pytest.approx([100 * 2 * 4 / (6 + 7)])  # 简约, 上衣, 衣v, v领
    assert per_row("rougeL", pairs) == pytest.approx([100 * 2 * 6 / (7 + 8)])


def test_gsm8k_accuracy_compares_final_numbers_by_value() -> None:
    gold = "She has 5 + 1,000 = 1,005.\n#### 1,005"
    right = ["#### 1005", "so it is $1,005.00", "First 3, then 1005", "#### 1005 dollars, that is 2 more"]
    wrong = ["1005 is more than 3", "", "#### -1005", "#### 1005.5"]
    assert per_row("gsm8k_accuracy", [(text, gold) for text in right + wrong]) == [1.0] * 4 + [0.0] * 4
    assert per_row("gsm8k_accuracy", [("3", "no number")]) == [None]


def test_includes_looks_for_whole_words_but_not_in_chinese() -> None:
    rows: list[dict[str, Any]] = [{"accept": ["Au"]}, {"accept": ["Au"]}, {"accept": ["8", "八"]}, {}]
    pairs = [("It is AU.", ""), ("It is August", ""), ("等于八。", ""), ("it is Paris", "paris")]
    cases = [Case(answer, reference, row) for (answer, reference), row in zip(pairs, rows, strict=True)]
    metric = METRICS["includes"]
    assert row_values(metric, metric.statistics(cases)) == [1.0, 0.0, 1.0, 1.0]


def test_perplexity_is_that_of_all_tokens_together() -> None:
    cases = [Case("", "a", {}, [math.log(0.5), math.log(0.25)]), Case("", "b", {}, [math.log(0.125)]), Case("", "")]
    score, _ = score_rows(METRICS["perplexity"], cases)
    assert score.value == pytest.approx((0.5 * 0.25 * 0.125) ** (-1 / 3))
    assert not score.higher_is_better
    assert (score.count, score.note) == (2, "1 row left out: the reference holds no token to predict")


def test_an_unknown_metric_is_named_with_those_there_are() -> None:
    with pytest.raises(EvaluationError, match=r"unknown metric 'slot_f2'; choose from exact_match.*perplexity"):
        find_metrics(["exact_match", "slot_f2"])


@pytest.mark.parametrize("name", ["slot_f1", "entity_f1", "triple_f1"])
def test_rows_of_another_kind_have_no_f1(name: str) -> None:
    pairs = [("2024-05-01", "2024-05-01"), ("garbage", "2024-05-02")]
    with pytest.raises(EvaluationError, match=f"{name} cannot be computed on any row: no reference has "):
        value(name, pairs)
    with pytest.raises(EvaluationError, match="no reference has "):
        check_scorable(METRICS[name], [Question(None, "?", reference) for _, reference in pairs])


def test_what_cannot_be_scored_is_known_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="needs the SQLite file"):
        check_scorable(METRICS["sql_execution"], [Question(None, "?", "SELECT 1")])
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(EvaluationError, match=r"install hotswap with the extra \[metrics\]"):
        check_scorable(METRICS["bleu4"], [Question(None, "?", "words")])
    check_scorable(METRICS["perplexity"], [Question(None, "?", "words")])
    check_scorable(METRICS["exact_match"], [Question(None, "?", "words")])
