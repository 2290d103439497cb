"""Reading labelled texts."""

import json
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tlc.calibration.tables import read_table
from tlc.calibration.texts import UNLABELED, Columns, TextSplits, read_texts, read_unlabeled, unlabeled_set
from tlc.runtime.errors import TlcError, UsageError

ROWS = [(f"film {i} was {'good' if i % 3 else 'bad'}", "positive" if i % 3 else "negative") for i in range(60)]


def write_csv(path: Path, rows: list[tuple[str, str]], header: str = "text,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [header, *('"{}",{}'.format(text.replace('"', '""'), label) for text, label in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sentences(path: Path, **options: object) -> TextSplits:
    return read_texts(path, task="sequence-classification", **options)  # type: ignore[arg-type]


def everything(splits: TextSplits) -> list[tuple[str, str, str]]:
    """Return (key, text, label) of all samples, sorted."""
    parts = (splits.fit, splits.holdout, splits.evaluation)
    return sorted(
        (key, text, part.classes[label])
        for part in parts
        for key, text, label in zip(part.keys, part.texts, part.labels.tolist(), strict=True)
    )


def require_disjoint(splits: TextSplits) -> None:
    parts = [set(part.digests) for part in (splits.fit, splits.holdout, splits.evaluation)]
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_one_table_is_split_in_three_by_class_and_seed(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "reviews.csv", ROWS)
    splits = sentences(path)
    sizes = [len(splits.fit), len(splits.holdout), len(splits.evaluation)]
    assert sizes == [39, 9, 12]
    assert Counter(splits.evaluation.labels.tolist()) == {0: 4, 1: 8}
    assert [(text, label) for _, text, label in sorted(everything(splits), key=lambda s: int(s[0][12:]))] == ROWS
    assert sentences(path).digest == splits.digest
    assert sentences(path, seed=1).digest != splits.digest


def test_a_key_is_the_line_where_its_row_starts(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b'\xef\xbb\xbftext,label\r\n"two\r\nlines",a\r\n\r\nthree,b\r\n"say ""so""",a\r\n')
    rows = read_table(path.name, path.read_bytes()).rows
    assert [(row.key, row.values["text"]) for row in rows] == [
        ("r.csv:2", "two\r\nlines"), ("r.csv:5", "three"), ("r.csv:6", 'say "so"')
    ]  # fmt: skip


def test_a_tsv_has_one_row_a_line_whatever_its_quotation_marks() -> None:
    data = b'sentence\tlabel\n"stray\t0\nhe said "no"\t1\n"with ""marks"""\t1\r\n"whole"\t0\n"\t1\n'
    rows = read_table("x.tsv", data).rows
    assert [row.values["sentence"] for row in rows] == ['"stray', 'he said "no"', 'with "marks"', "whole", '"']
    assert [row.values["label"] for row in rows] == ["0", "1", "1", "0", "1"]


def test_all_formats_hold_the_same_samples(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts, labels = zip(*ROWS, strict=True)
    csv = write_csv(tmp_path / "a.csv", ROWS)
    tsv = tmp_path / "a.tsv"
    tsv.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS), encoding="utf-8")
    lines = write_lines(tmp_path / "a.jsonl", [{"label": label, "text": text} for text, label in ROWS])
    table = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": texts, "label": labels, "unused": range(len(ROWS))}), table)
    found = [[sample[1:] for sample in everything(sentences(path))] for path in (csv, tsv, lines, table)]
    assert Counter(found[0]) == Counter(ROWS)
    assert all(Counter(other) == Counter(found[0]) for other in found[1:])


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev", "test"])
def test_a_file_beside_train_is_the_evaluation(tmp_path: Path, name: str) -> None:
    write_csv(tmp_path / "train.csv", ROWS[:40])
    write_lines(tmp_path / f"{name}.jsonl", [{"text": text, "label": label} for text, label in ROWS[40:]])
    splits = sentences(tmp_path)
    assert sorted(splits.evaluation.keys) == sorted(f"{name}.jsonl:{line}" for line in range(1, 21))
    assert len(splits.holdout) == 8
    assert {key.split(":")[0] for part in (splits.fit, splits.holdout) for key in part.keys} == {"train.csv"}


def test_three_files_are_the_three_splits_and_those_of_train_may_be_shards(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    write_csv(inside / "train-00000-of-00002.csv", ROWS[:20])
    write_csv(inside / "train-00001-of-00002.csv", ROWS[20:40])
    write_csv(inside / "dev.csv", ROWS[40:50])
    write_csv(inside / "test.csv", ROWS[50:])
    (tmp_path / "README.md").write_text("As hubs lay data sets out.", encoding="utf-8")
    splits = sentences(tmp_path)
    assert splits.fit.texts == tuple(text for text, _ in ROWS[:40])
    assert splits.holdout.texts == tuple(text for text, _ in ROWS[40:50])
    assert splits.evaluation.texts == tuple(text for text, _ in ROWS[50:])
    assert splits.fit.keys[20] == "data/train-00001-of-00002.csv:2"


def test_folders_of_text_files_are_classes(tmp_path: Path) -> None:
    for split, rows in (("train", ROWS[:40]), ("test", ROWS[40:])):
        for number, (text, label) in enumerate(rows):
            folder = tmp_path / "films" / split / label
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.txt").write_text(text + "\n", encoding="utf-8")
    splits = sentences(tmp_path / "films")
    assert splits.classes == ("negative", "positive")
    assert len(splits.evaluation) == 20
    assert {(text, label) for _, text, label in everything(splits)} == set(ROWS)
    assert "train/negative/0.txt" in splits.fit.keys + splits.holdout.keys
    assert [s[1:] for s in everything(sentences(tmp_path / "films/train"))] == [
        s[1:] for s in everything(splits) if s[0].startswith("train/")
    ]


def test_an_archive_is_read_in_place(tmp_path: Path) -> None:
    plain = write_csv(tmp_path / "train.csv", ROWS)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        packed.write(plain, "reviews/all.csv")
    splits = sentences(tmp_path / "packed.zip")
    assert [s[1:] for s in everything(splits)] == [s[1:] for s in everything(sentences(plain))]
    assert splits.fit.keys[0].startswith("reviews/all.csv:")


def test_texts_of_the_evaluation_are_left_out_of_training_and_said(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [*ROWS[:30], ROWS[45], ROWS[31]])
    write_csv(tmp_path / "val.csv", [*ROWS[30:45], ROWS[46]])
    write_csv(tmp_path / "test.csv", ROWS[45:])
    splits = sentences(tmp_path)
    assert splits.skipped == (
        "train.csv:32: the same text as test.csv:2, which is measured on",
        "val.csv:17: the same text as test.csv:3, which is measured on",
        "train.csv:33: the same text as val.csv:3, which is measured on",
    )
    require_disjoint(splits)
    write_csv(tmp_path / "train.csv", ROWS[30:])
    with pytest.raises(
        TlcError, match=r"15 of 15 texts to measure on are also in another split:\n  train.csv:17 = test.csv:2"
    ):
        sentences(tmp_path)


def test_copies_in_one_table_never_stand_on_both_sides(tmp_path: Path) -> None:
    splits = sentences(write_csv(tmp_path / "r.csv", ROWS * 3))
    require_disjoint(splits)
    assert not splits.skipped


@pytest.mark.parametrize(
    ("labels", "names", "expected"),
    [
        (("negative", "positive"), ("positive", "negative"), [1, 0]),  # by name
        (("Negative", "POSITIVE"), ("positive", "negative"), [1, 0]),  # whatever the case
        (("0", "1"), ("positive", "negative"), [0, 1]),  # class indices
        (("0", "1"), (), [0, 1]),
        (("bad", "good"), (), [0, 1]),  # sorted, where the model has no names
    ],
)
def test_labels_are_put_in_the_order_of_the_model(
    tmp_path: Path, labels: tuple[str, str], names: tuple[str, ...], expected: list[int]
) -> None:
    rows = [(text, labels[label == "positive"]) for text, label in ROWS]
    splits = sentences(write_csv(tmp_path / "r.csv", rows)).for_model(2, names)
    assert splits.classes == (names or labels)
    for part in (splits.fit, splits.holdout, splits.evaluation):
        assert part.labels.tolist() == [expected["good" in text] for text in part.texts]


def test_numbers_are_sorted_as_numbers_and_written_alike(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": f"t{i}", "label": float(i % 11) if i % 2 else i % 11} for i in range(88)]
    splits = sentences(write_lines(tmp_path / "r.jsonl", rows))
    assert splits.classes == tuple(map(str, range(11)))


@pytest.mark.parametrize(
    ("labels", "count", "names", "message"),
    [
        (("bad", "good"), 2, ("negative", "positive"), "2 labels, bad, good; the model calls its classes negative, p"),
        (("1", "2"), 2, ("negative", "positive"), "has 2 labels, 1, 2; the model calls its classes negative, positive"),
        (("1", "2"), 2, (), "has 2 labels, 1, 2; the model has 2 classes without names"),
        (("bad", "good"), 3, (), "has 2 labels, bad, good; the model has 3 classes without names"),
        (("a", "b"), 3, ("a", "b", "c"), "1 of 3 classes have no samples in train: c"),
    ],
)
def test_labels_unlike_the_models_are_refused(
    tmp_path: Path, labels: tuple[str, str], count: int, names: tuple[str, ...], message: str
) -> None:
    splits = sentences(write_csv(tmp_path / "r.csv", [(t, labels[name == "positive"]) for t, name in ROWS]))
    with pytest.raises(TlcError, match=message):
        splits.for_model(count, names)


def test_every_row_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "r.csv", ROWS)
    broken = b'caf\xe9 noir,positive\n" ",negative\nsome text,\na,b,c\nsome "quoted" text,positive\n"x" y,positive\n,\n'
    path.write_bytes(path.read_bytes() + broken)
    with pytest.raises(TlcError) as caught:
        sentences(path)
    assert caught.value.message.split("\n  ")[1:] == [
        "r.csv:62: byte 0xE9 is not UTF-8",
        "r.csv:65: 3 fields where the first row has 2",
        "r.csv:67: quotation marks do not match (',' expected after '\"')",
        "r.csv:63: text is empty",
        "r.csv:64: label is empty",
        "and 1 more",
    ]
    assert "6 of 67 samples cannot be used" in caught.value.message
    assert "--skip-bad" in caught.value.hint
    splits = sentences(path, skip_bad=True)
    assert len(everything(splits)) == 61
    assert len(splits.skipped) == 6
    assert "r.csv:68: text is empty" in splits.skipped


def test_a_mark_that_is_never_closed_is_named_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text('text,label\nfine,a\n"open,a\nfine,b\n', encoding="utf-8")
    with pytest.raises(TlcError, match=r"r.csv:3: quotation marks do not match \(unexpected end of data, up to line 4"):
        sentences(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"}', "label is missing"),
        (b'{"text": null, "label": 1}', "text is missing"),
        (b'{"text": 5, "label": 1}', "text is 5, not a text"),
        (b'{"text": "a", "label": [1, 0]}', r"label is \[1, 0\], not one class"),
        (b'{"text": "a", "label": NaN}', "label is missing"),
        (b'{"text": "a"', "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "\xff", "label": 1}', "byte 0xFF is not UTF-8"),
        (b'{"text": "half \\ud83d", "label": 1}', "text holds half a character, U.D83D"),
    ],
)
def test_lines_of_json_that_cannot_be_used_are_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"text": "first", "label": 0}\n\n' + line + b"\n")
    with pytest.raises(TlcError, match=rf"1 of 2 samples cannot be used:\n  r.jsonl:3: {reason}"):
        sentences(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("r.csv", b"", "r.csv is empty"),
        ("r.csv", b"text,label\n", "has no rows"),
        ("r.csv", b"text,text\na,b\n", "the first row names column 'text' twice"),
        ("r.csv", b"text;label\na;b\n", "the first row 'text;label' has no ',' but ';'"),
        ("r.csv", "text,label\na,b\n".encode("utf-16"), "encoded as UTF-16"),
        ("r.csv", b"\xfftext,label\na,b\n", "not a row of column names in UTF-8"),
        ("r.csv", b"body,label\na,b\n", "no column called text or sentence or review .*; it has body, label"),
        ("r.csv", b"text,verdict\na,b\n", "no column called label or labels or .*; it has text, verdict"),
        ("r.csv", b"text,label\na,-1\nb,-1\n", "every label is -1, which stands for an unknown one"),
        ("r.jsonl", b"text\tlabel\n", "is not JSON Lines, the first of 1 lines: r.jsonl:1: not JSON"),
        ("r.parquet", b"PAR1", "cannot be read as Parquet"),
        ("r.xlsx", b"PK", "is not a table of texts"),
        ("r.csv", b"text,label\na,x\nb,y\n", "of 2 samples, none is left to hold out and to evaluate on"),
    ],
)
def test_files_that_are_no_tables_of_texts(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TlcError, match=message) as caught:
        sentences(tmp_path / name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("a.csv", "b.csv"), "has the files a, b, but none is called train"),
        (("train.csv", "train.tsv"), "has train 2 times: train.csv, train.tsv"),
        (("notes.md",), "has no tables of texts and no folders"),
        (("train/a/1.txt", "train/b/1.txt", "test/a/1.txt"), "test has no .txt files of class 'b'"),
        (("val/a/1.txt", "test/a/1.txt"), "has the folders test, val, but none is called train"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path: Path, files: tuple[str, ...], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(TlcError, match=message):
        sentences(tmp_path)


def test_what_is_not_there_and_ratios_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(TlcError, match="does not exist"):
        sentences(tmp_path / "none.csv")
    with pytest.raises(UsageError, match=r"holdout_ratio is 0.9, it must be above 0 and at most 0.5"):
        sentences(tmp_path, holdout_ratio=0.9)


def test_pairs_are_found_by_name_and_named_columns_go_first(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 2, "Verdict": "yes" if i % 4 else "no"}
        for i in range(40)
    ]
    path = write_lines(tmp_path / "nli.jsonl", rows)
    splits = sentences(path)
    assert splits.fit.pairs is not None
    assert [text.replace("p", "h") for text in splits.fit.texts] == list(splits.fit.pairs)
    named = sentences(path, columns=Columns(text="hypothesis", label="Verdict"))
    assert named.fit.pairs is None
    assert named.fit.texts[0].startswith("h")
    assert named.classes == ("no", "yes")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(text="body"), "r.csv has no column 'body'; it has text, label"),
        (Columns(label="stars"), "r.csv has no column 'stars'"),
        (Columns(pair="other"), "r.csv has no column 'other'"),
        (Columns(text="label"), "column 'label' is asked to be two things at once"),
    ],
)
def test_named_columns_must_be_there(tmp_path: Path, columns: Columns, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sentences(write_csv(tmp_path / "r.csv", ROWS), columns=columns)


def test_words_with_tags(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"tokens": ["anna", f"saw{i}", "paris"], "ner_tags": ["B-PER", "O", "B-LOC"]} for i in range(20)
    ]
    splits = read_texts(write_lines(tmp_path / "r.jsonl", rows), task="token-classification")
    assert splits.classes == ("B-LOC", "B-PER", "O")
    splits = splits.for_model(4, ("O", "B-PER", "B-LOC", "B-ORG"))  # A tag may be rare.
    assert splits.fit.tags is not None
    assert set(splits.fit.tags) == {(1, 0, 2)}
    assert splits.fit.words is not None
    assert splits.fit.texts[0] == " ".join(splits.fit.words[0])
    assert not splits.fit.labels.any()


def test_words_and_tags_may_be_written_in_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    cells = [
        "in paris {i},0 1 0",
        '"[""in"", ""paris"", ""{i}""]","[0, 1, 0]"',
        "\"['in', 'paris', '{i}']\",\"[0, 1, 0]\"",
    ]
    lines = [cells[i % 3].format(i=i) for i in range(30)]
    path.write_text("words,tags\n" + "\n".join(lines), encoding="utf-8")
    splits = read_texts(path, task="token-classification").for_model(2, ("O", "B-LOC"))
    parts = (splits.fit, splits.holdout, splits.evaluation)
    assert {words[:2] for part in parts for words in part.words or ()} == {("in", "paris")}
    assert {tags for part in parts for tags in part.tags or ()} == {(0, 1, 0)}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 tokens but 1 ner_tags"),
        ({"tokens": [], "ner_tags": []}, "tokens is empty"),
        ({"tokens": [1], "ner_tags": ["O"]}, "tokens holds 1, not a word"),
        ({"tokens": ["a"], "ner_tags": 3}, "ner_tags is 3, not a list"),
        ({"tokens": "[a, b]", "ner_tags": ["O"]}, r"tokens is not a list: '\[a, b\]'"),
    ],
)
def test_words_and_tags_that_do_not_fit(tmp_path: Path, row: dict[str, object], reason: str) -> None:
    with pytest.raises(TlcError, match=rf"r.jsonl:1: {reason}"):
        read_texts(write_lines(tmp_path / "r.jsonl", [row]), task="token-classification")


def test_words_have_no_second_text(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", [{"tokens": ["a"], "tags": ["O"]}])
    with pytest.raises(UsageError, match="token classification has no second text"):
        read_texts(path, task="token-classification", columns=Columns(pair="tags"))


def test_parquet_without_its_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "r.parquet").write_bytes(b"PAR1")
    with pytest.raises(TlcError, match="pyarrow, which reads it, is not installed") as caught:
        sentences(tmp_path / "r.parquet")
    assert caught.value.hint == "Run: pip install 'tlc[text]'."


def question(number: int, answers: object) -> dict[str, object]:
    return {"question": f"where {number} ?", "context": f"it was in paris {number}", "answers": answers}


def test_questions_with_answers_in_every_usual_form(tmp_path: Path) -> None:
    forms: list[object] = [
        {"text": ["paris", "in paris"], "answer_start": [10, 7]},
        [{"text": "paris", "answer_start": 10}],
        '{"text": ["paris"], "answer_start": [10]}',
        "{'text': ['paris'], 'answer_start': [10]}",
        {"text": "paris", "answer_start": 10},
        {"text": [], "answer_start": []},
    ]
    path = write_lines(tmp_path / "r.jsonl", [question(i, forms[i % 6]) for i in range(60)])
    splits = read_texts(path, task="question-answering").for_model(2, ("LABEL_0", "LABEL_1"))
    found = {
        (int(text.split()[1]) % 6, answers)
        for part in (splits.fit, splits.holdout, splits.evaluation)
        for text, answers in zip(part.texts, part.answers or (), strict=True)
    }
    assert dict(found) == {0: (("paris", 10), ("in paris", 7)), 5: ()} | dict.fromkeys(range(1, 5), (("paris", 10),))
    assert splits.classes == ()
    assert splits.fit.pairs is not None
    assert splits.fit.pairs[0].startswith("it was in paris")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"text": ["rome"], "answer_start": [10]}, "the context has no 'rome' at character 10"),
        ({"text": ["paris"], "answer_start": [-7]}, "the context has no 'paris' at character -7"),
        ({"text": ["paris"], "answer_start": []}, "answers is not"),
        ({"text": [""], "answer_start": [0]}, "answers holds '' at 0"),
        ("paris", "answers is not"),
        (None, "answers is missing"),
    ],
)
def test_answers_that_do_not_fit(tmp_path: Path, answers: object, reason: str) -> None:
    with pytest.raises(TlcError, match=rf"r.jsonl:1: {reason}"):
        read_texts(write_lines(tmp_path / "r.jsonl", [question(0, answers)]), task="question-answering")


def test_sets_keep_their_parts_together(tmp_path: Path) -> None:
    part = sentences(write_csv(tmp_path / "r.csv", ROWS)).fit
    first, last = part.subset([3, 1]), part.subset(np.arange(5, len(part)))
    assert first.texts == (part.texts[3], part.texts[1])
    both = first.joined(last)
    assert both.keys == first.keys + last.keys
    assert both.labels.tolist() == [*first.labels.tolist(), *last.labels.tolist()]
    assert first.joined(first).digest != first.digest
    assert part.subset(range(len(part))).digest == part.digest
    tagged = read_texts(
        write_lines(tmp_path / "t.jsonl", [{"tokens": [f"w{i}"], "tags": ["O"]} for i in range(9)]),
        task="token-classification",
    )
    with pytest.raises(ValueError, match="one task"):
        part.joined(tagged.fit)


def test_texts_without_labels(tmp_path: Path) -> None:
    lines = tmp_path / "more.txt"
    lines.write_text("one\n\n two \r\none\nthree\u2028four\n", encoding="utf-8")
    assert read_unlabeled(lines) == ("one", "two", "three\u2028four")
    table = write_csv(tmp_path / "more.csv", ROWS)
    assert read_unlabeled(table) == tuple(text for text, _ in ROWS)
    assert read_unlabeled(table, "label") == ("negative", "positive")
    folder = tmp_path / "unsup"
    folder.mkdir()
    (folder / "1.txt").write_text("a text\nof two lines\n", encoding="utf-8")
    assert read_unlabeled(folder) == ("a text of two lines",)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("u.txt", b"fine\ncaf\xe9\n", "u.txt:2: byte 0xE9 is not UTF-8"),
        ("u.txt", b"\n\n", "has no texts"),
        ("u.csv", b"body\nx\n", "no column called text"),
        ("u.csv", b"text,n\nx,1\n ,2\n", "1 of 2 rows cannot be used:\n  u.csv:3: text is empty"),
    ],
)
def test_texts_without_labels_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TlcError, match=message):
        read_unlabeled(tmp_path / name)


def test_texts_that_are_judged_by_are_never_trained_on_without_labels(tmp_path: Path) -> None:
    splits = sentences(write_csv(tmp_path / "r.csv", ROWS)).for_model(2, ("negative", "positive"))
    more = unlabeled_set([splits.evaluation.texts[0], "new", splits.holdout.texts[0], "newer"], splits)
    assert more.texts == ("new", "newer")
    assert more.labels.tolist() == [UNLABELED, UNLABELED]
    assert splits.fit.joined(more).classes == ("negative", "positive")
    pairs = sentences(
        write_lines(tmp_path / "p.jsonl", [{"text1": f"a{i}", "text2": "b", "label": i % 2} for i in range(20)])
    )
    with pytest.raises(UsageError, match="two texts at a time"):
        unlabeled_set(["new"], pairs)


@pytest.mark.assets
def test_the_reviews_of_the_real_model(assets: Path) -> None:
    splits = sentences(assets / "movie-sentiment").for_model(2, ("negative", "positive"))
    assert [len(splits.fit), len(splits.holdout), len(splits.evaluation)] == [6917, 872, 1821]
    assert len(splits.skipped) == 3
