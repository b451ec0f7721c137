"""A cache of packed features, bounded in bytes. Imports no torch."""

from collections import OrderedDict

from serving.wire import EncodedImage

# What an entry costs beside its packed bytes: key, tuple, dictionary slot.
_OVERHEAD = 512


class FeatureCache:
    """Least recently used images leave first. Not thread-safe: it lives on the event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[str, EncodedImage] = OrderedDict()

    @property
    def size_bytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def get(self, key: str) -> EncodedImage | None:
        """The image of ``key``, or None."""
        if key in self._images:
            self._images.move_to_end(key)
        return self._images.get(key)

    def put(self, image: EncodedImage) -> None:
        """Keep ``image``, unless it alone exceeds the bound."""
        cost = len(image.packed) + _OVERHEAD
        if image.key in self._images or cost > self._max_bytes:
            return
        self._images[image.key] = image
        self._bytes += cost
        while self._bytes > self._max_bytes:
            _, oldest = self._images.popitem(last=False)
            self._bytes -= len(oldest.packed) + _OVERHEAD
