-- Invariant 8: customers whose decisions (reversals, and refusals kept or forgotten) are not numbered 1, 2, 3 and so on
-- up to their sequence; decisions of customers who are not there.
-- $1 org (null: all), $2 at most how many rows; `broken` counts all of them
with decisions as (
    select v.org_id, v.customer_id, v.sequence from reversal v where $1::bigint is null or v.org_id = $1
    union all
    select f.org_id, f.customer_id, f.sequence from refusal f
    where ($1::bigint is null or f.org_id = $1) and f.customer_id is not null
), counted as (
    select d.org_id, d.customer_id, count(*) as decisions, count(distinct d.sequence) as numbers,
        min(d.sequence) as first, max(d.sequence) as last
    from decisions d
    group by d.org_id, d.customer_id
), known as (
    select c.org_id, c.customer_id, c.sequence, c.forgotten from customer c where $1::bigint is null or c.org_id = $1
), broken as materialized (
    select coalesce(c.org_id, d.org_id) as org_id, coalesce(c.customer_id, d.customer_id) as "customerId",
        case
            when c.customer_id is null then format('has %s decisions but is not there', d.decisions)
            when d.numbers < d.decisions then format('%s decisions have %s different numbers', d.decisions, d.numbers)
            when d.first < 1 or d.last > c.sequence
                then format('decisions are numbered %s to %s, the sequence is %s', d.first, d.last, c.sequence)
            else format('the sequence is %s, but there are %s decisions and %s forgotten ones',
                c.sequence, coalesce(d.decisions, 0), c.forgotten)
        end as fault
    from known c
    full join counted d on d.org_id = c.org_id and d.customer_id = c.customer_id
    where c.customer_id is null
        or d.numbers < d.decisions
        or d.first < 1
        or d.last > c.sequence
        or coalesce(d.decisions, 0) + c.forgotten <> c.sequence
)
select b.*, count(*) over () as broken
from broken b
order by 1, 2
limit $2
