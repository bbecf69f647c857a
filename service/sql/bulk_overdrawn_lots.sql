-- Faults: redemptions that took points of a lot which it cannot have lost: what it holds and what its redemptions can
-- still give back to it would be more than it was issued with. Of a lot's lines the first ones stand as long as they fit.
with taken as (
    select s.line, s.org_id, u.lot_id, u.position, u.points
    from staged_redemption s
    cross join lateral unnest(s.lot_ids, s.lot_points) with ordinality as u (lot_id, points, position)
    where s.reversed = 0
    union all
    select r.line, r.org_id, u.lot_id, u.position, least(u.points, greatest(r.open - u.before, 0))
    from (
        select s.line, s.org_id, s.lot_ids, s.lot_points, s.points - s.reversed as open
        from staged_redemption s where s.lot_ids is not null and s.reversed > 0
        union all
        select 0, r.org_id, r.lot_ids, r.lot_points, r.points - r.reversed
        from (select distinct org_id, customer_id from staged_redemption where lot_ids is not null) as t
        join redemption r on r.org_id = t.org_id and r.customer_id = t.customer_id
        where r.reversed < r.points
    ) as r
    cross join lateral (
        select p.lot_id, p.points, p.position, sum(p.points) over (order by p.position) - p.points as before
        from unnest(r.lot_ids, r.lot_points) with ordinality as p (lot_id, points, position)
    ) as u
), totals as (
    select t.org_id, t.lot_id, sum(t.points) as points from taken t group by t.org_id, t.lot_id
), rooms as (
    select t.org_id, t.lot_id, coalesce(l.points, f.points) as issued, coalesce(l.remaining, f.remaining) as remaining
    from totals t
    left join lot l on l.org_id = t.org_id and l.lot_id = t.lot_id
    left join staged_lot f on f.org_id = t.org_id and f.lot_id = t.lot_id
    where t.points > coalesce(l.points - l.remaining, f.points - f.remaining)
), running as (
    select t.line, t.lot_id, t.position, r.issued, r.remaining,
        sum(t.points) over (partition by t.org_id, t.lot_id order by t.line, t.position) as points
    from rooms r
    join taken t on t.org_id = r.org_id and t.lot_id = r.lot_id
), bad as (
    select distinct on (u.line) u.*
    from running u
    where u.line > 0 and u.points > u.issued - u.remaining
    order by u.line, u.position
), noted as (
    insert into staged_fault
    select b.line, format('lots[%s].points', b.position - 1),
        format('lots[%s]: lot %s was issued with %s points and holds %s, so that %s can have been taken from it, not %s',
            b.position - 1, b.lot_id, trim_scale(b.issued / 1000.0), trim_scale(b.remaining / 1000.0),
            trim_scale((b.issued - b.remaining) / 1000.0), trim_scale(b.points / 1000.0))
    from bad b
)
delete from staged_redemption s using bad b where s.line = b.line
