// object: `remap_file_pages`
// status: hidden
// note: ENOSYS; deprecated since Linux 3.16
#include "object.h"
#include <sys/mman.h>

int main(void) {
    char *memory = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    ready();
    do {
        CHECK(remap_file_pages(memory, 4096, 0, 2, 0) < 0 && errno == ENOSYS);
    } while (go_on());
    PASS();
}
