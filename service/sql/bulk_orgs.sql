-- Replaces orgs; of an org's lines the last counts. Counts the rows that changed.
insert into org as o (org_id, reversal_enabled)
select distinct on (s.org_id) s.org_id, s.reversal_enabled
from staged_org s
order by s.org_id, s.line desc
on conflict on constraint org_pk do update set reversal_enabled = excluded.reversal_enabled
    where o.reversal_enabled <> excluded.reversal_enabled
