"""What every kind's configuration shares: the common keys, and the rules for keys that a kind does not read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import msgspec

from adapters.errors import PackageError, UnsupportedKindError
from adapters.limits import PackageLimits
from adapters.names import reason, shown

CAUSAL_LM, SEQ_2_SEQ_LM = "CAUSAL_LM", "SEQ_2_SEQ_LM"


class CommonConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Keys that peft writes for every kind. Subclasses add the keys that their mathematics needs.

    ``KIND`` is our short name of the kind. ``IGNORED`` keys concern training or peft's own loading and never change
    what a saved adapter computes. ``REFUSED`` keys do, are not served, and are mapped to what they ask for.
    ``DESCRIPTIVE`` fields are read, and decide nothing that the tensors do not say already. ``INDEX_DTYPES`` are the
    integer types of tensors, for kinds that have any; ``EMPTY_TENSORS`` says whether a tensor may have no elements.
    ``WIDENS``: the kind adapts the embedding and the head of a base whose vocabulary was resized for training, too.
    """

    peft_type: str
    task_type: str | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None

    KIND: ClassVar[str] = ""
    IGNORED: ClassVar[frozenset[str]] = frozenset({"auto_mapping", "inference_mode", "revision"})
    REFUSED: ClassVar[Mapping[str, str]] = {"modules_to_save": "fully trained modules"}
    WIDENS: ClassVar[bool] = False
    DESCRIPTIVE: ClassVar[frozenset[str]] = frozenset({"task_type", "peft_version", "base_model_name_or_path"})
    INDEX_DTYPES: ClassVar[tuple[str, ...]] = ()
    EMPTY_TENSORS: ClassVar[bool] = False

    def check(self, limits: PackageLimits) -> None:
        """Raise PackageError for values that no sound package has, UnsupportedKindError for those not served."""
        if self.task_type not in (None, CAUSAL_LM, SEQ_2_SEQ_LM):
            raise UnsupportedKindError(
                f"the adapter's task_type is {shown(self.task_type)}; only {CAUSAL_LM} and {SEQ_2_SEQ_LM} adapters "
                "are served"
            )

    def semantics(self) -> dict[str, Any]:
        """The part of the configuration that, with the tensors, decides what the adapter computes."""
        names = [name for name in self.__struct_fields__ if name not in self.DESCRIPTIVE]
        return {name: msgspec.to_builtins(getattr(self, name)) for name in names}

    @classmethod
    def parse(cls, raw: Mapping[str, Any], limits: PackageLimits) -> Self:
        """The configuration in ``raw``, checked. Raises PackageError and UnsupportedKindError."""
        fields = {key: value for key, value in raw.items() if key not in cls.IGNORED}
        fields = {key: value for key, value in fields.items() if not cls._is_dropped(key, value)}
        try:
            config = msgspec.convert(fields, cls)
        except msgspec.ValidationError as error:
            raise PackageError(f"adapter_config.json: {reason(error)}") from error
        config.check(limits)
        return config

    @classmethod
    def _is_dropped(cls, key: str, value: object) -> bool:
        """Whether a key that this class does not read may be left out; raises when it may not."""
        if key in cls.__struct_fields__:
            return False
        if value is None or value is False or value in ("", [], {}):  # switched off: a newer peft writes such keys
            return True
        if key in cls.REFUSED:
            raise UnsupportedKindError(
                f"adapter_config.json sets {key!r}: {cls.REFUSED[key]} are not served; train without this option"
            )
        raise PackageError(
            f"adapter_config.json sets the unknown key {shown(key)}; what peft 0.21 writes is understood, and newer "
            "keys only when null, false or empty. Remove the key if it does not change what the adapter computes"
        )
