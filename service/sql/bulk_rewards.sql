-- Adds the new rewards, and brings `maxTotal` and `status` of known ones up to date; of a reward's lines the last counts,
-- for the count of a new one the first. A return or a redemption may have moved a known one between ACTIVE and
-- OUT_OF_STOCK since the file was made: where its own count bears that out, it stays. Counts the rows that changed.
insert into reward as w (org_id, reward_id, max_total, redeemed_count, status)
select l.org_id, l.reward_id, l.max_total, f.redeemed_count,
    case
        when k.status = 'ACTIVE' and l.status = 'OUT_OF_STOCK' and k.redeemed_count < l.max_total then k.status
        when k.status = 'OUT_OF_STOCK' and l.status = 'ACTIVE' and k.redeemed_count >= l.max_total then k.status
        else l.status
    end
from (select distinct on (s.org_id, s.reward_id) s.* from staged_reward s order by s.org_id, s.reward_id, s.line desc) as l
join (select distinct on (s.org_id, s.reward_id) s.* from staged_reward s order by s.org_id, s.reward_id, s.line) as f
    on f.org_id = l.org_id and f.reward_id = l.reward_id
left join reward k on k.org_id = l.org_id and k.reward_id = l.reward_id
order by l.org_id, l.reward_id
on conflict on constraint reward_pk do update set max_total = excluded.max_total, status = excluded.status
    where w.max_total is distinct from excluded.max_total or w.status <> excluded.status
