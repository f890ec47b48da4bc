"""Networks, reached through the dotted paths of conf/model."""
