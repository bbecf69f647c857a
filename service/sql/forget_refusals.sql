-- Deletes a bounded number of refusals that are older than a moment, and counts them on their customers, so that the
-- audit can still prove that no sequence has a gap. Customers are locked in one order.
-- $1 the moment, $2 at most how many
with old as materialized (
    select org_id, lane_id, record_offset, outcome_id, customer_id
    from refusal where failed_at < $1 order by failed_at limit $2
), counted as (
    select org_id, customer_id, count(*) as refusals from old where customer_id is not null group by org_id, customer_id
), locked as materialized (
    select c.org_id, c.customer_id from customer c
    where (c.org_id, c.customer_id) in (select org_id, customer_id from counted)
    order by c.org_id, c.customer_id for no key update
), deleted as (
    delete from refusal f using old
    where f.org_id = old.org_id and f.lane_id = old.lane_id and f.record_offset = old.record_offset
        and f.outcome_id = old.outcome_id
    returning f.org_id, f.customer_id
), remembered as (
    update customer c set forgotten = c.forgotten + d.refusals
    from (select org_id, customer_id, count(*) as refusals from deleted where customer_id is not null
          group by org_id, customer_id) as d
    where c.org_id = d.org_id and c.customer_id = d.customer_id and (select count(*) from locked) >= 0
)
select count(*) from deleted
