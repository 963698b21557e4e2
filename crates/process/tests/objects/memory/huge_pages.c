// object: huge pages asked for explicitly (`MAP_HUGETLB`, `MFD_HUGETLB`, `SHM_HUGETLB`)
// status: hidden
// note: ENOMEM, as where none are set aside; transparent ones are used as elsewhere
#include "object.h"
#include <sys/mman.h>
#include <sys/shm.h>

int main(void) {
    ready();
    do {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
        CHECK(mmap(0, 2 << 20, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED && errno == ENOMEM);
        CHECK(memfd_create("huge", MFD_HUGETLB) < 0 && errno == ENOMEM);
        // How Chromium asks whether there is the call.
        CHECK(memfd_create("huge", ~0u) < 0 && errno == EINVAL);
        CHECK(shmget(IPC_PRIVATE, 2 << 20, IPC_CREAT | SHM_HUGETLB | 0600) < 0 && errno == ENOMEM);
    } while (go_on());
    PASS();
}
