# ARD_FAST_SANITIZE: one sanitizer for everything built below.
if(ARD_FAST_SANITIZE STREQUAL "address")
  add_compile_options(-fsanitize=address -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address)
elseif(ARD_FAST_SANITIZE STREQUAL "undefined")
  # Alignment is part of it: a 16-byte access to an unaligned address, a fault on a GPU, is reported.
  add_compile_options(-fsanitize=undefined,float-cast-overflow -fno-sanitize-recover=all)
  add_link_options(-fsanitize=undefined)
elseif(ARD_FAST_SANITIZE STREQUAL "thread")
  add_compile_options(-fsanitize=thread)
  add_link_options(-fsanitize=thread)
elseif(ARD_FAST_SANITIZE)
  message(FATAL_ERROR "ARD_FAST_SANITIZE: expected address, undefined, thread or nothing, got "
                      "'${ARD_FAST_SANITIZE}'")
endif()
