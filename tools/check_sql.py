"""Gate on UPDATE and DELETE without WHERE in SQL: `python -m tools.check_sql [FILE …]`, part of `make check`.

Supabase preloads pg-safeupdate for every REST session, which refuses these statements with SQLSTATE 21000,
inside functions as well. PostgreSQL's own parser (pglast) reads the text: statements, CTEs, rules, SQL and
PL/pgSQL function bodies, DO blocks, and string literals that are statements themselves (EXECUTE, format(),
cron.schedule()). Without a FILE: migrations, seeds, snippets, the embedded Supabase's SQL, and the SQL
of the Markdown pages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pglast import ast, parse_plpgsql, parse_sql
from pglast.parser import ParseError
from pglast.stream import RawStream
from pglast.visitors import Visitor

from ourvidz_sdxl.local import ROOT

FILES = ("supabase/migrations/*.sql", "supabase/seed*.sql", "supabase/snippets/*.sql", "supabase/local/sql/*.sql")
PAGES = ("*.md", "docs/**/*.md", "supabase/*.md", "supabase/local/*.md", "studio/*.md", "studio/packages/*/*.md")
INLINE_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
SQL_BLOCK = re.compile(r"^( *)```sql\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
# A literal without either word is not parsed, and one with them that is no SQL is prose, unless it is executed.
DML = re.compile(r"\b(update|delete)\b", re.IGNORECASE)
# Parameters of an executed literal: format()'s %I, %2$s, %L, and what is concatenated to it.
PLACEHOLDER = "placeholder"
FORMAT = re.compile(r"%(?:\d+\$)?-?\d*([IsL])")
# The declared types of PL/pgSQL variables: libpg_query knows the schemas pg_catalog and public only, and whose type it is does not
# matter here.
DECLARATIONS = re.compile(r"\bdeclare\b.*?\bbegin\b", re.IGNORECASE | re.DOTALL)
QUALIFIED_TYPE = re.compile(r"(?<=\s)\w+(?=\.\w+(?:%\w+|\[\])*\s*(?:;|:=|=|default\b|not\s+null\b))", re.IGNORECASE)
# Languages whose bodies are not SQL text: compiled into the server or into an extension.
COMPILED = {"c", "internal"}
# PL/pgSQL statements whose expression is evaluated to the text of a statement.
DYNAMIC = {"PLpgSQL_stmt_dynexecute": "query", "PLpgSQL_stmt_dynfors": "query", "PLpgSQL_stmt_return_query": "dynquery",
           "PLpgSQL_stmt_open": "dynquery"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Finding:
    line: int
    statement: str
    reason: str

    def __str__(self) -> str:
        return f"{self.line}: {self.reason}: {' '.join(self.statement.split())[:120]}"


def check(text: str) -> list[Finding]:
    """UPDATE and DELETE without WHERE in a text of SQL statements, and what cannot be parsed. Lines are counted from 1."""
    try:
        statements = parse_sql(text)
    except ParseError as error:
        at = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], int) else 0
        return [Finding(line=_line(text, at), statement=text[at : at + 120], reason=f"not parsed ({error.args[0]})")]
    findings: list[Finding] = []
    for raw in statements:
        start, length = raw.stmt_location or 0, raw.stmt_len
        source = text[start : start + length if length else None]
        line = _line(text, start + _leading_blank(source))
        visitor = _Unguarded(source)
        if raw.stmt:
            visitor(raw.stmt)
        findings += [replace(found, line=line) for found in visitor.findings]
    return findings


class _Unguarded(Visitor):
    """Collects the findings of one statement; `source` is its text."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.findings: list[Finding] = []

    def visit_UpdateStmt(self, _: object, node: Any) -> None:  # noqa: N802  pglast calls it by the node's name
        self._require_where("UPDATE", node)

    def visit_DeleteStmt(self, _: object, node: Any) -> None:  # noqa: N802
        self._require_where("DELETE", node)

    def _require_where(self, command: str, node: Any) -> None:
        if node.whereClause is None:
            self.findings.append(Finding(line=1, statement=RawStream()(node), reason=f"{command} without WHERE"))

    def visit_A_Const(self, _: object, node: Any) -> None:  # noqa: N802
        if isinstance(node.val, ast.String):
            self.findings += _of_literal(node.val.sval or "", executed=False)

    def visit_DoStmt(self, _: object, node: Any) -> None:  # noqa: N802
        options = {option.defname: option.arg for option in node.args}
        self._body(options["language"].sval if "language" in options else "plpgsql", "")

    def visit_CreateFunctionStmt(self, _: object, node: Any) -> None:  # noqa: N802
        options = {option.defname: option.arg for option in node.options or ()}
        if "as" in options:  # else it is BEGIN ATOMIC, whose statements are nodes like others
            self._body(options["language"].sval if "language" in options else "sql", options["as"][0].sval)

    def _body(self, language: str, body: str) -> None:
        if language == "sql":
            self.findings += check(body)
        elif language == "plpgsql":
            self.findings += _of_plpgsql(self.source)
        elif language not in COMPILED:
            self.findings.append(Finding(line=1, statement=self.source, reason=f"not checked: language {language}"))


def _of_plpgsql(source: str) -> list[Finding]:
    try:
        tree = parse_plpgsql(DECLARATIONS.sub(lambda found: QUALIFIED_TYPE.sub("public", found[0]), source))
    except ParseError as error:
        return [Finding(line=1, statement=source, reason=f"not parsed ({error.args[0]})")]
    findings: list[Finding] = []
    for node, expression in _expressions(tree):
        dynamic = DYNAMIC.get(node[0]) == node[1]
        # parse mode 0 is a whole statement, the others are expressions or assignments
        query = expression["query"] if expression["parseMode"] == 0 else f"select {expression['query']}"
        if expression["parseMode"] > 2:
            query = f"select {expression['query'].partition(':=')[2] or expression['query'].partition('=')[2]}"
        findings += _of_dynamic(query) if dynamic else check(query)
    return findings


def _expressions(tree: Any, kind: str = "", key: str = "") -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Every PLpgSQL_expr, with the statement and the field that it stands in."""
    if isinstance(tree, list):
        for item in tree:
            yield from _expressions(item, kind, key)
    elif isinstance(tree, dict):
        for name, value in tree.items():
            if name == "PLpgSQL_expr":
                yield (kind, key), value
            elif name.startswith("PLpgSQL_"):
                yield from _expressions(value, name, "")
            else:
                yield from _expressions(value, kind, name)


def _of_dynamic(select: str) -> list[Finding]:
    """Findings in `select <expression>` whose value is executed, as far as the expression is made of literals."""
    statement: Any = parse_sql(select)[0].stmt
    return _of_literal(_text_of(statement.targetList[0].val), executed=True)


def _text_of(node: Any) -> str:
    """Text that an expression evaluates to, with a placeholder for whatever is no literal."""
    kind = type(node)
    if kind is ast.A_Const and isinstance(node.val, ast.String):
        return str(node.val.sval)
    if kind is ast.A_Expr and [name.sval for name in node.name] == ["||"]:
        return _text_of(node.lexpr) + _text_of(node.rexpr)
    if kind is ast.TypeCast:
        return _text_of(node.arg)
    if kind is ast.FuncCall and node.funcname[-1].sval in ("format", "concat") and node.args:
        parts = [_text_of(argument) for argument in node.args]
        if node.funcname[-1].sval == "concat":
            return "".join(parts)
        return FORMAT.sub(lambda found: f"'{PLACEHOLDER}'" if found[1] == "L" else PLACEHOLDER, parts[0]).replace("%%", "%")
    return PLACEHOLDER


def _of_literal(text: str, *, executed: bool) -> list[Finding]:
    findings = check(text) if DML.search(text) else []
    return [found for found in findings if executed or not found.reason.startswith("not parsed")]


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _leading_blank(source: str) -> int:
    """Length of the white space and comments before a statement."""
    found = re.match(r"(?:\s+|--[^\n]*\n|/\*.*?\*/)*", source, re.DOTALL)
    return found.end() if found else 0


def check_file(path: Path) -> list[Finding]:
    text = path.read_text()
    if path.suffix != ".md":
        return check(text)
    blocks = [(block.start(2), check(block[2])) for block in SQL_BLOCK.finditer(text)]
    spans = [(span.start(1), _of_literal(span[1], executed=False)) for span in INLINE_CODE.finditer(text)]
    return [replace(found, line=_line(text, start) + found.line - 1) for start, findings in blocks + spans for found in findings]


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 without findings, else 1."""
    named = [Path(name) for name in arguments]
    paths = named or sorted(path for pattern in (*FILES, *PAGES) for path in ROOT.glob(pattern) if "node_modules" not in path.parts)
    findings = [f"{path}:{found}" for path in paths for found in check_file(path)]
    print(*findings, f"UPDATE and DELETE without WHERE: {len(findings) or 'no'} findings in {len(paths)} files", sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
