-- A role as it is written in a statement, the schema that the tables are in, and whether the role may do everything with
-- them by itself: as a superuser, or as their owner or a member of it. No row where there is no such role.
-- $1 the role's name
select quote_ident(r.rolname) as quoted, quote_ident(n.nspname) as schema,
    r.rolsuper or pg_has_role(r.oid, c.relowner, 'member') as too_mighty
from pg_roles r, pg_class c
join pg_namespace n on n.oid = c.relnamespace
where r.rolname = $1 and c.oid = 'schema_migration'::regclass
