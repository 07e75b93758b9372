"""From an archive to a catalogue, and from a catalogue to a data set of decoded films."""
