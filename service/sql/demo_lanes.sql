-- How far each input partition is taken.
select topic, partition, next_offset
from lane
