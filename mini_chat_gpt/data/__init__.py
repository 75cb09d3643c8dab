"""From texts and chats to batches: map-style datasets, packing, loading ahead."""
