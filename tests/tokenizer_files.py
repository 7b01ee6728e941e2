"""A WordPiece tokeniser whose vocabulary is that of the sentences of tests."""

from __future__ import annotations

from pathlib import Path

from tests.sentences import SENTENCES

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def write_tokenizer(path: Path) -> int:
    """Write tokenizer.json, with whole words as tokens; return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = sorted({"".join(filter(str.isalpha, w)) for s in SENTENCES for w in s.lower().split()})
    vocabulary = {token: n for n, token in enumerate((*SPECIAL, *filter(None, words)))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(path))
    return len(vocabulary)
