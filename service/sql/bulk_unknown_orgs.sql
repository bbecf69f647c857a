-- Faults: lines of a kind whose org neither the file nor the ledger has; they leave the staging.
-- (The table's name, staged_KIND, is put in by the function: it is one of ours.)
with bad as (
    select s.line, s.org_id from {table} s where not exists (select from org o where o.org_id = s.org_id)
), noted as (
    insert into staged_fault select b.line, 'orgId', format('orgId %s is not known', b.org_id) from bad b
)
delete from {table} s using bad b where s.line = b.line
