"""The experiments of `wmpo bench`: `experiments` says what is compared, the rest runs it and writes it up."""
