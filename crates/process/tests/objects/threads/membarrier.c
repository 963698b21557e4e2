// object: what is registered for `membarrier`
// status: captured
#include "object.h"
#include <linux/membarrier.h>
#include <sys/syscall.h>

static int barrier(int command) {
    return syscall(SYS_membarrier, command, 0, 0);
}

int main(void) {
    CHECK_EQUAL(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED), 0);
    CHECK_EQUAL(barrier(MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE), 0);
    ready();
    while (go_on()) {
        CHECK_EQUAL(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED), 0);
        CHECK_EQUAL(barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE), 0);
    }
    PASS();
}
