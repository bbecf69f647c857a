-- Locks the rewards that were there before, in the order in which the service locks them.
with locked as materialized (
    select w.org_id, w.reward_id
    from reward w
    where (w.org_id, w.reward_id) in (select s.org_id, s.reward_id from staged_reward s)
    order by w.org_id, w.reward_id
    for no key update
)
select count(*) from locked
