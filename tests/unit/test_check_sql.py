"""The gate on UPDATE and DELETE without WHERE finds them wherever pg-safeupdate would, and passes what it would pass."""

from pathlib import Path

import pytest

from tools import check_sql


def function(body: str, *, declare: str = "", returns: str = "void") -> str:
    return f"create function public.f() returns {returns} language plpgsql as $$ {declare} begin {body} end $$"


REFUSED = {
    "UPDATE": "update t set a = 1",
    "UPDATE … FROM": "update t set a = u.a from u",
    "DELETE": "delete from t",
    "DELETE … USING": "delete from t using u",
    "CTE": "with gone as (delete from t returning a) select a from gone",
    "CTE of an INSERT": "with gone as (delete from t returning a) insert into u select a from gone",
    "rule": "create rule r as on insert to t do also delete from u",
    "prepared statement": "prepare p as delete from t",
    "COPY": "copy (delete from t returning a) to stdout",
    "SQL function": "create function f() returns void language sql as 'select 1; delete from t'",
    "SQL function of statements": "create function f() returns void language sql begin atomic delete from t; end",
    "DO block": "do $$ begin update t set a = 1; end $$",
    "PL/pgSQL function": function("delete from t;"),
    "PL/pgSQL procedure": "create procedure p() language plpgsql as $$ begin delete from t; commit; end $$",
    "trigger function": function("new.a := 1; delete from t; return new;", returns="trigger"),
    "branch": function("if (select true) then update t set a = 1; end if;"),
    "exception handler": function("null; exception when others then delete from t;"),
    "loop over RETURNING": function("for r in update t set a = 1 returning a loop end loop;", declare="declare r record;"),
    "RETURN QUERY": function("return query delete from t returning a;", returns="setof integer"),
    "variable of a type elsewhere": function("delete from private.t;", declare="declare v private.t;"),
    "EXECUTE": function("execute 'delete from t';"),
    "EXECUTE of a concatenation": function("execute 'delete from ' || quote_ident(v);", declare="declare v text;"),
    "EXECUTE of format()": function("execute format('update %I set a = %L', 't', 1);"),
    "EXECUTE of a variable": function("v := 'delete from t'; execute v;", declare="declare v text;"),
    "EXECUTE of a default": function("execute v;", declare="declare v text := 'delete from t';"),
    "EXECUTE of a block": function("execute 'do $x$ begin delete from t; end $x$';"),
    "RETURN QUERY EXECUTE": function("return query execute 'delete from t returning a';", returns="setof integer"),
    "loop over EXECUTE": function("for r in execute 'delete from t' loop end loop;", declare="declare r record;"),
    "cursor over EXECUTE": function("open c for execute 'delete from t';", declare="declare c refcursor;"),
    "scheduled statement": "select cron.schedule('purge', '* * * * *', 'delete from t')",
}
PASSED = {
    "UPDATE … WHERE": "update t set a = 1 where true",
    "DELETE … WHERE CURRENT OF": "delete from t where current of c",
    "upsert": "insert into t values (1) on conflict (a) do update set a = 2",
    "MERGE": "merge into t using u on true when matched then delete",
    "TRUNCATE": "truncate t",
    "prose": "select 'update your settings', 'delete'",
    "comment": "comment on table t is 'delete from t'",
    "function": function("update t set a = 1 where b; execute format('delete from %I where a = $1', 't') using 1;"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_statement_without_where_is_found(name: str) -> None:
    [finding] = check_sql.check(REFUSED[name])
    assert finding.reason in ("UPDATE without WHERE", "DELETE without WHERE")


@pytest.mark.parametrize("name", PASSED)
def test_other_statements_pass(name: str) -> None:
    assert check_sql.check(PASSED[name]) == []


@pytest.mark.parametrize(
    "text",
    [
        "this is no SQL",
        function("this is no PL/pgSQL"),
        function("execute 'update ' || v || ' set ' || v;", declare="declare v text;"),  # no statement can be made of it
        "create function f() returns void language plpython3u as 'pass'",
    ],
    ids=["SQL", "PL/pgSQL", "EXECUTE", "language"],
)
def test_what_cannot_be_checked_does_not_pass(text: str) -> None:
    [finding] = check_sql.check(text)
    assert finding.reason.startswith(("not parsed", "not checked"))


def test_a_finding_has_its_line_and_its_statement() -> None:
    text = f"select 'é';\n-- ü\n\nupdate t set a = 1 where b;\n\n{function('delete from t where b; delete from u;')};"
    assert [str(found) for found in check_sql.check(text)] == ["6: DELETE without WHERE: DELETE FROM u"]


@pytest.mark.parametrize("name", ["a.sql", "a.md"])
def test_it_fails_on_a_file_and_says_where(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / name
    file.write_text("Text.\n```sql\ndelete from t;\n```\n" if name == "a.md" else "\n\ndelete from t;\n")
    assert check_sql.main([str(file)]) == 1
    assert f"{file}:3: DELETE without WHERE: DELETE FROM t\n" in capsys.readouterr().out


def test_a_page_is_read_as_far_as_it_is_sql(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "To update, `delete from t` or `git update`.\n\n```sh\nupdate\n```\n\n"
        "1. Then\n\n   ```sql\n   update t set a = 1;\n   ```\n"
    )
    assert [finding.line for finding in check_sql.check_file(page)] == [10, 1]


def test_the_repository_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_sql.main([]) == 0, capsys.readouterr().out
