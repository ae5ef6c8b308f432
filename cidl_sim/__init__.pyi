# The names of the package for type checkers and editors; __init__.py imports each when it is first asked for.

from cidl_sim.core.device import DeviceProfile as DeviceProfile
from cidl_sim.core.device import read_device as read_device
from cidl_sim.core.plan import Plan as Plan
from cidl_sim.core.plan import read_plan as read_plan
from cidl_sim.core.trace import Trace as Trace
from cidl_sim.core.trace import read_trace as read_trace
from cidl_sim.core.workload import Block as Block
from cidl_sim.core.workload import Stage as Stage
from cidl_sim.core.workload import Workload as Workload
from cidl_sim.core.workload import read_workload as read_workload
from cidl_sim.devices.catalog import find_device as find_device
from cidl_sim.pipelines.catalog import find_workload as find_workload
from cidl_sim.planner.evaluate import evaluated_plan as evaluated_plan
from cidl_sim.planner.planner import best_plan as best_plan
from cidl_sim.policies.catalog import POLICIES as POLICIES
from cidl_sim.policies.catalog import make_plan as make_plan
from cidl_sim.simulator.engine import simulate as simulate
