-- Which of the named privileges the session's role has not, each relation's once.
-- arrays: $1 relations, $2 privileges, $3 columns (null: on the whole relation)
select w.relation, w.privilege
from unnest($1::text[], $2::text[], $3::text[]) with ordinality as w (relation, privilege, column_name, position)
where not case
    when w.column_name is null then has_table_privilege(w.relation, w.privilege)
    else has_column_privilege(w.relation, w.column_name, w.privilege)
end
group by w.relation, w.privilege
order by min(w.position)
