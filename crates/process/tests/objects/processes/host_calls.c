// object: `ptrace`, and calls for what is the host's: clocks, host name, modules, swap, mounts by descriptor
// status: hidden
// note: EPERM, as without the capability; ENOSYS for mounts by descriptor and `modify_ldt`; prctl options that cannot be read back EINVAL
#include "object.h"
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/time.h>

#define REFUSED(call, number) \
    do { \
        CHECK((call) == -1); \
        CHECK_EQUAL(errno, number); \
    } while (0)

int main(void) {
    ready();
    while (go_on()) {
        struct timespec time;
        CHECK(!clock_gettime(CLOCK_REALTIME, &time));
        REFUSED(clock_settime(CLOCK_REALTIME, &time), EPERM);
        REFUSED(sethostname("other", 5), EPERM);
        REFUSED(ptrace(PTRACE_TRACEME, 0, 0, 0), EPERM);
        REFUSED(swapoff("/nonexistent"), EPERM);
        REFUSED(syscall(SYS_delete_module, "none", 0), EPERM);
        REFUSED(syscall(SYS_fsopen, "tmpfs", 0), ENOSYS);
        REFUSED(syscall(SYS_modify_ldt, 0, 0, 0), ENOSYS);
        REFUSED(prctl(PR_SET_TSC, PR_TSC_SIGSEGV), EINVAL);
        REFUSED(prctl(59, 0, 0, 0, 0), EINVAL);  // PR_SET_SYSCALL_USER_DISPATCH
    }
    PASS();
}
