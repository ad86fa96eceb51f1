"""Small tokenizers of the three kinds, made on the spot."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PROSE = [
    "Only Alexander the Great could tame the horse Bucephalus.",
    "An apple, an Apple and AN APPLE fell from the tree; the café was closed.",
    "def apple(tree):\n    return tree.fruit + 1\n",
    "Ένα μήλο, яблоко, 苹果, 🍎, naïve façade, tab\there.",
]


def byte_level_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer as DeepSeek, Llama 3 and GPT-2 have, of a few hundred tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE * 4, trainer)
    tokenizer.add_tokens(["<added>", "Apple Pie"])
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """A SentencePiece-style tokenizer as Llama 2 and Gemma have: Metaspace and byte fallback."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "a", "p", "l", "e", "A", "▁apple", "▁Apple", "apple", "é", "É", "▁the", "▁▁"]
    vocab = {piece: token_id for token_id, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def wordpiece_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer as BERT has, with holes in its id space."""
    vocab = {"[PAD]": 0, "[UNK]": 3, "[CLS]": 4, "apple": 10, "##s": 11, "Apple": 12, "##S": 13}
    vocab |= {"tree": 20, "s": 21, "été": 22, "ete": 23}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
