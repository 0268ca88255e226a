"""The papers' models and the small ones, as data; files that begin with _ are only inherited from."""
