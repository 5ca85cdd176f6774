"""The OCI runtime-spec builder: CRI words and facts in, `config.json` as a plain dict out.

Start at `spec.py`. Every other module builds one part, validates what it is given, and refuses with `OperationError`.
"""
